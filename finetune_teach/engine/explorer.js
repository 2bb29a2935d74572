// What all explorers of finetune_teach are made of. They are drawn in the page, out of the HTML
// that a notebook keeps: with a kernel and without one. No network is needed.
// Each explorer adds a function view(app) behind this file, which gives {nodes, draw}.

const LIGHT = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9'];
const DARK = ['#4ba7df', '#f0884a', '#2fc39b', '#e39cc6', '#f0b840', '#8acdf2'];
const palette = colours => colours.map((colour, i) => `--c${i}: ${colour};`).join(' ');

const STYLE = `
:host { display: block; max-width: 760px; margin: 16px 0; container-type: inline-size }
.card { ${palette(LIGHT)} --ink: #1d2530; --soft: #5b6674; --line: #d9dee5; --card: #fbfcfd;
  --field: #fff; --grid: #e8ebef; --focus: #0072b2; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 14px; padding: 18px 20px;
  font: 14px/1.45 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; text-align: left }
.card.dark { ${palette(DARK)} --ink: #e6eaf0; --soft: #a3adba; --line: #39414d; --card: #191d23;
  --field: #232932; --grid: #2a313b; --focus: #8acdf2; color-scheme: dark }
* { box-sizing: border-box }
[hidden] { display: none !important }
h3 { font-size: 16px; margin: 0 0 2px; font-weight: 650 }
p { margin: 0 }
.soft, .unit { color: var(--soft); font-size: 13px }
.stack { display: grid; gap: 16px }
.row { display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: center }
.grid { display: grid; gap: 14px 24px; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)) }
.two { display: grid; gap: 16px 24px; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)) }
label.control { display: grid; grid-template-columns: 1fr auto; gap: 0 8px;
  align-content: start; align-items: baseline }
label.control input[type=range] { grid-column: 1 / 3 }
.name { font-weight: 550 }
.value { font-variant-numeric: tabular-nums; font-weight: 650 }
.hint { grid-column: 1 / 3; color: var(--soft); font-size: 12.5px; line-height: 1.3 }
input[type=range] { width: 100%; height: 28px; margin: 0; accent-color: var(--c0); cursor: grab;
  touch-action: pan-y; min-width: 0 }
input[type=checkbox], input[type=radio] { accent-color: var(--c0); width: 16px; height: 16px;
  margin: 0; flex: none }
input[type=text], button { font: inherit; color: var(--ink); background: var(--field);
  border: 1px solid var(--line); border-radius: 8px; padding: 5px 12px; min-height: 34px }
input[type=text] { width: 96px; padding: 5px 8px; font-variant-numeric: tabular-nums }
button { cursor: pointer; transition: background .15s, border-color .15s }
button:hover { border-color: var(--soft) }
button.main { background: var(--focus); border-color: var(--focus); color: var(--card);
  font-weight: 600 }
button[aria-pressed=true] { border-color: var(--c0); box-shadow: inset 0 0 0 1px var(--c0) }
button:disabled { opacity: .5; cursor: default }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; border-radius: 6px }
input[type=range]:focus-visible { outline-offset: -3px }
.tick { display: inline-flex; gap: 7px; align-items: center; min-height: 28px; cursor: pointer }
.swatch { width: 14px; height: 4px; border-radius: 2px; background: var(--colour); flex: none }
fieldset { border: 0; margin: 0; padding: 0; min-width: 0; display: flex; flex-wrap: wrap;
  gap: 4px 16px; align-items: center }
legend { float: left; font-weight: 550; padding: 0; margin-right: 4px }
figure { margin: 0; min-width: 0 }
figcaption { font-weight: 550; margin-bottom: 2px }
svg { display: block; width: 100%; overflow: visible; font: 12px system-ui, sans-serif }
svg text { fill: var(--soft) }
svg .axis { stroke: var(--line) }
svg .grid-line { stroke: var(--grid) }
svg .line { fill: none; stroke-linejoin: round; stroke-linecap: round }
svg .handle { cursor: grab; touch-action: none; outline: none }
svg .handle:active { cursor: grabbing }
svg .handle .ring { fill: var(--card); stroke: var(--ink); stroke-width: 3 }
svg .handle .halo { fill: var(--ink); opacity: 0; transition: opacity .15s }
svg .handle:hover .halo { opacity: .08 }
svg .handle:focus-visible .halo { opacity: .2; stroke: var(--focus); stroke-width: 3 }
.bar { height: 18px; border-radius: 5px; background: var(--grid); overflow: hidden; min-width: 0 }
.bar i { display: block; height: 100%; border-radius: 5px; background: var(--colour);
  width: 100%; transform-origin: left; transition: transform .35s, background .35s }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, monospace; overflow-wrap: anywhere }
.call { display: flex; gap: 10px; align-items: center; justify-content: space-between;
  background: var(--field); border: 1px solid var(--line); border-radius: 8px; padding: 4px 4px 4px
  12px }
details summary { cursor: pointer; color: var(--soft); padding: 3px 0 }
details[open] summary { margin-bottom: 10px }
.error { color: #c8102e; white-space: pre-wrap; overflow-wrap: anywhere }
.dark .error { color: #ff9aa5 }
.big { font-size: 26px; font-weight: 700; font-variant-numeric: tabular-nums; line-height: 1.2 }
.faces { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)) }
.faces img { width: 100%; aspect-ratio: 1; border-radius: 8px; display: block; object-fit: cover }
.faces figcaption { font-weight: 400; font-size: 12.5px; line-height: 1.3; margin-top: 4px;
  overflow-wrap: anywhere }
@container (max-width: 430px) { .card { padding: 14px 12px; border-radius: 10px } }
@media (prefers-reduced-motion: reduce) { * { transition: none !important;
  animation: none !important } }
`;

// Elements

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter(child => child != null));
  return element;
}
const h = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
const safe = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const hue = i => `var(--c${i % 6})`;

// Numbers as text, and back

const twoDigits = value => Number(value.toExponential(1));
const rate = value => value.toExponential(1).replace('.0', '').replace('e+', 'e').replace('e0', '');
const percent = value => `${Math.round(100 * value)}\u202f%`;
const nice = value => { // 1, 2 or 5 times a power of ten, not below
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find(n => n * power >= value * (1 - 1e-9));
};
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
const nearest = (rates, wanted) => rates.reduce((best, lr, i) => // its place
  Math.abs(Math.log(lr / wanted)) < Math.abs(Math.log(rates[best] / wanted)) ? i : best, 0);

// Controls. Each has a node, and `sync`, which shows what the state says.

function slider(app, name, options) { // label, min, max, step, log, format, hint
  const { log, format = String } = options;
  const to = log ? value => Math.log10(value) : value => value;
  const from = log ? place => twoDigits(10 ** place) : place => Number(place.toPrecision(6));
  const input = h('input', { type: 'range', min: to(options.min), max: to(options.max),
    step: options.step ?? (log ? 0.05 : 1), name, 'data-control': name,
    oninput: () => app.move({ [name]: from(Number(input.value)) }) });
  const value = h('span', { class: 'value' });
  const node = h('label', { class: 'control' }, h('span', { class: 'name' }, options.label), value,
    input, options.hint ? h('span', { class: 'hint' }, options.hint) : null);
  return app.control({ node, sync(state) {
    if (from(Number(input.value)) !== state[name]) input.value = to(state[name]);
    value.textContent = format(state[name]);
    input.setAttribute('aria-valuetext', format(state[name]));
  } });
}

function ticks(app, name, options) { // boxes to tick; the state holds a list
  const boxes = options.of.map(({ value, label, colour }) => {
    const input = h('input', { type: 'checkbox', value, 'data-control': name, onchange: () =>
      app.move({ [name]: boxes.filter(box => box.input.checked).map(box => box.value) }) });
    const swatch = h('span', { class: 'swatch', style: `--colour: ${colour}` });
    return { value, input, node: h('label', { class: 'tick' }, input, swatch, label) };
  });
  const node = h('fieldset', {}, h('legend', {}, options.label), boxes.map(box => box.node));
  return app.control({ node, sync(state) {
    for (const box of boxes) box.input.checked = state[name].includes(box.value);
  } });
}

let groups = 0;
function choice(app, name, options) { // one of several
  const group = `${name}-${groups++}`;
  const radios = options.of.map(({ value, label }) => {
    const input = h('input', { type: 'radio', name: group, 'data-control': name,
      onchange: () => app.move({ [name]: value }) });
    return { value, input, node: h('label', { class: 'tick' }, input, label) };
  });
  const node = h('fieldset', {}, h('legend', {}, options.label), radios.map(r => r.node));
  return app.control({ node, sync(state) {
    for (const radio of radios) radio.input.checked = radio.value === state[name];
  } });
}

function toggle(app, name, label) {
  const input = h('input', { type: 'checkbox', role: 'switch', 'data-control': name,
    onchange: () => app.move({ [name]: input.checked }) });
  const node = h('label', { class: 'tick' }, input, label);
  return app.control({ node, sync(state) { input.checked = state[name]; } });
}

function question(app, name, { ask, of, then }) { // guess first; the state holds null until then
  const buttons = of.map(({ value, label }) => h('button', { type: 'button', 'data-control': name,
    onclick: () => { app.move({ [name]: value }); then?.(value); } }, label));
  const node = h('fieldset', { style: 'gap: 8px' },
    h('legend', { style: 'width: 100%; margin: 0 0 2px' }, ask), buttons);
  return app.control({ node, sync(state) { node.hidden = state[name] !== null; } });
}

function copyable(label) { // a line of code, and a button that copies it
  const code = h('code');
  const button = h('button', { type: 'button', 'aria-label': label, onclick: async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // not allowed here: select it, so that Ctrl-C does it
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
    }
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  } }, 'Copy');
  return { node: h('div', { class: 'call' }, code, button),
    show(text) { if (code.textContent !== text) code.textContent = text; } };
}

// A plot with linear or logarithmic axes

function scale({ min, max, log }, from, to) {
  const f = log ? Math.log10 : value => value;
  const [a, b] = [f(min), f(max)];
  const at = value => from + (to - from) * (f(value) - a) / (b - a);
  at.back = place => {
    const value = a + (b - a) * (place - from) / (to - from);
    return clamp(log ? 10 ** value : value, min, max);
  };
  return at;
}

function marks({ min, max, log, at }, count) { // where an axis has numbers
  if (at) return at;
  if (log) {
    const [first, last] = [Math.ceil(Math.log10(min) - 1e-9), Math.floor(Math.log10(max) + 1e-9)];
    const every = Math.ceil((last - first + 1) / count);
    return Array.from({ length: Math.max(0, Math.floor((last - first) / every) + 1) },
      (_, i) => 10 ** (first + i * every));
  }
  const step = nice((max - min) / count), found = [];
  for (let k = Math.ceil(min / step - 1e-9); k * step <= max * (1 + 1e-9); k++) {
    found.push(Number((k * step).toPrecision(9)));
  }
  return found;
}

let plots = 0;
function plot(title, words, height = 210) { // words: what it shows, for those who do not see it
  const clip = `clip-${plots++}`;
  const [frame, still, moving] = ['g', 'g', 'g'].map(tag => s(tag));
  const svg = s('svg', { role: 'group', 'aria-label': words, height }, frame, still, moving);
  const key = h('div', { class: 'row soft', style: 'gap: 2px 14px' });
  const caption = h('figcaption', {}, title);
  const node = h('figure', { class: 'plot' }, caption, key, svg);
  const handles = [];
  let latest, x, y, width = 0;

  function axes(spec, left, right, top, bottom) {
    const parts = [];
    for (const value of marks(spec.y, 4)) {
      const at = y(value).toFixed(1);
      parts.push(`<line class="grid-line" x1="${left}" x2="${right}" y1="${at}" y2="${at}"/>`,
        `<text x="${left - 7}" y="${at}" dy=".35em" text-anchor="end">`
        + `${safe((spec.y.format ?? String)(value))}</text>`);
    }
    for (const value of marks(spec.x, Math.max(2, Math.min(6, Math.floor(width / 62))))) {
      parts.push(`<text x="${x(value).toFixed(1)}" y="${bottom + 17}" text-anchor="middle">`
        + `${safe((spec.x.format ?? String)(value))}</text>`);
    }
    parts.push(`<line class="axis" x1="${left}" x2="${right}" y1="${bottom}" y2="${bottom}"/>`,
      `<text x="${(left + right) / 2}" y="${bottom + 34}" text-anchor="middle">`
      + `${safe(spec.x.title ?? '')}</text>`);
    return parts.join('');
  }

  const path = (xs, ys) => xs.map((value, i) => [x(value), y(ys[i])])
    .map(([a, b], i) => `${i ? 'L' : 'M'}${a.toFixed(1)} ${clamp(b, -999, 2999).toFixed(1)}`)
    .join('');

  const note = (at, room, down, text = '') => room > 8 * text.length // else on the other side
    ? `<text x="${at + 6}" y="${down}">${safe(text)}</text>`
    : `<text x="${at - 6}" y="${down}" text-anchor="end">${safe(text)}</text>`;

  function content(spec, left, right, top, bottom) {
    const parts = [];
    for (const { from, to, label, colour } of spec.regions ?? []) {
      parts.push(`<rect x="${x(from)}" y="${top}" width="${x(to) - x(from)}" `
        + `height="${bottom - top}" style="fill: ${colour ?? 'var(--grid)'}; opacity: .55"/>`,
      note(x(from), x(to) - x(from), top + 14, label));
    }
    for (const { x: xs, low, high, colour } of spec.bands ?? []) {
      const back = path([...xs].reverse(), [...high].reverse()).replace('M', 'L');
      parts.push(`<path d="${path(xs, low)}${back}Z" style="fill: ${colour}; opacity: .16"/>`);
    }
    for (const { at, label, colour = 'var(--soft)' } of spec.rules ?? []) {
      parts.push(`<line x1="${x(at)}" x2="${x(at)}" y1="${top}" y2="${bottom}" `
        + `style="stroke: ${colour}; stroke-dasharray: 4 4"/>`,
      note(x(at), right - x(at), top + 12, label));
    }
    for (const line of spec.lines) {
      const style = `stroke: ${line.colour}; stroke-width: ${line.width ?? 2.2}; `
        + `opacity: ${line.opacity ?? 1}; stroke-dasharray: ${line.dash ?? 'none'}`;
      parts.push(`<path class="line" d="${path(line.x, line.y)}" style="${style}"/>`);
      for (const i of line.dots ? line.x.keys() : []) {
        parts.push(`<circle cx="${x(line.x[i]).toFixed(1)}" cy="${y(line.y[i]).toFixed(1)}" `
          + `r="${line.dots}" style="fill: ${line.colour}; opacity: ${line.opacity ?? 1}"/>`);
      }
    }
    return `<g clip-path="url(#${clip})">${parts.join('')}</g>`;
  }

  function draw(spec) { // x, y: axes; lines, bands, regions, rules; handles: places, or null
    latest = spec;
    width ||= node.clientWidth || 320;
    const [left, right, top, bottom] = [spec.left ?? 44, width - 12, 12, height - 42];
    x = scale(spec.x, left, right);
    y = scale(spec.y, bottom, top);
    svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    const fixed = `<clipPath id="${clip}"><rect x="${left - 4}" y="${top - 8}" `
      + `width="${right - left + 10}" height="${bottom - top + 12}"/></clipPath>`
      + axes(spec, left, right, top, bottom);
    if (frame.latest !== fixed) frame.innerHTML = frame.latest = fixed;
    still.innerHTML = content(spec, left, right, top, bottom);
    const names = spec.lines.filter(line => line.label);
    const legend = names.map(line => `<span class="tick" style="min-height: 20px"><span
      class="swatch" style="--colour: ${line.colour}"></span>${safe(line.label)}</span>`).join('');
    if (key.innerHTML !== legend && key.latest !== legend) key.innerHTML = key.latest = legend;
    (spec.handles ?? []).forEach((place, i) => handles[i]?.put(place, top, bottom));
  }

  function handle({ label, drag, key: pressed, colour }) { // a round thing that can be moved
    const line = s('line', { style: 'stroke: var(--ink); stroke-width: 1; opacity: .35' });
    const dot = s('g', {}, s('circle', { r: 20, class: 'halo' }),
      s('circle', { r: 8, class: 'ring', style: `stroke: ${colour ?? 'var(--ink)'}` }));
    const group = s('g', { class: 'handle', tabindex: 0, role: 'slider', 'aria-label': label,
      'data-control': label }, line, dot);
    const where = event => {
      const box = svg.getBoundingClientRect();
      return [x.back((event.clientX - box.left) * width / box.width),
        y.back((event.clientY - box.top) * height / box.height)];
    };
    group.addEventListener('pointerdown', event => {
      group.setPointerCapture(event.pointerId);
      event.preventDefault();
      group.focus({ preventScroll: true, focusVisible: false });
      group.dragged = true;
    });
    group.addEventListener('pointermove', event => { if (group.dragged) drag(...where(event)); });
    for (const name of ['pointerup', 'pointercancel']) {
      group.addEventListener(name, () => { group.dragged = false; drag(); });
    }
    group.addEventListener('keydown', event => {
      const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      const [across, up] = way[event.key] ?? [];
      if (across === undefined) return;
      event.preventDefault();
      event.stopPropagation(); // Jupyter would move to another cell
      pressed(across, up);
    });
    moving.append(group);
    handles.push({ put(place, top, bottom) {
      if (!place) return group.setAttribute('hidden', '');
      const { x: a, y: b, text, now } = place;
      group.removeAttribute('hidden');
      const [across, down] = [x(a), b === undefined ? top + 6 : y(b)];
      dot.setAttribute('transform', `translate(${across.toFixed(1)} ${down.toFixed(1)})`);
      fill(line, { x1: across, x2: across, y1: b === undefined ? top : down, y2: bottom }, []);
      return fill(group, { 'aria-valuetext': text, 'aria-valuenow': now ?? a }, []);
    } });
    return group;
  }

  new ResizeObserver(() => {
    if (Math.abs(node.clientWidth - width) > 1 && node.clientWidth) {
      width = node.clientWidth;
      if (latest) draw(latest);
    }
  }).observe(node);
  return { node, draw, handle, svg, title(text) { caption.textContent = text; } };
}

// An explorer: state, controls, a view, and perhaps a kernel behind it

function isDark(host, canvas) { // as the page around it, whoever made it
  const body = document.body, root = document.documentElement;
  const says = body.dataset.jpThemeLight ?? body.dataset.vscodeThemeKind ?? root.dataset.bsTheme;
  if (body.classList.contains('quarto-dark') || /^false$|dark|^vscode-high-contrast$/.test(says)) {
    return true;
  }
  if (says !== undefined || body.classList.contains('quarto-light')) return false;
  for (let at = host; at; at = at.parentElement ?? (at === canvas ? null : canvas)) {
    const [r, g, b, a = 1] = getComputedStyle(at).backgroundColor.match(/[\d.]+/g).map(Number);
    if (a > 0.5) return 0.3 * r + 0.6 * g + 0.1 * b < 110;
  }
  return false;
}

function mount(host, spec) { // spec: data, state, alt
  const shadow = host.shadowRoot ?? host.attachShadow({ mode: 'open' });
  const problem = h('p', { class: 'error', role: 'alert', hidden: true });
  const card = h('section', { class: 'card stack', 'aria-label': spec.alt });
  const controls = [];
  let draw = () => {}, timer = null;
  const app = {
    data: spec.data, state: { ...spec.state }, news: {}, model: null, moves: 0,
    control(made) { controls.push(made); return made.node; },
    say(text) { problem.textContent = text ?? ''; problem.hidden = !text; },
    show() {
      try {
        for (const control of controls) control.sync(app.state);
        draw();
        app.say(app.news.error);
      } catch (error) { app.say(String(error)); throw error; }
    },
    move(changes) { // by whoever uses the page
      app.moves++;
      Object.assign(app.state, changes);
      app.show();
      if (app.model && !timer) timer = setTimeout(app.tell, 40);
    },
    tell() {
      timer = null;
      app.model?.set('state', { ...app.state });
      app.model?.save_changes();
    },
    ask(question) { // something that only a kernel knows
      if (timer) { clearTimeout(timer); app.tell(); }
      app.model?.send(question);
    },
    connect(model) {
      const hear = () => { Object.assign(app.state, model.get('state')); app.show(); };
      const listen = () => { app.news = model.get('news'); app.show(); };
      app.model = model;
      model.on('change:state', hear);
      model.on('change:news', listen);
      app.leave = () => { model.off('change:state', hear); model.off('change:news', listen); };
      app.news = model.get('news');
      hear();
    },
    disconnect() { app.leave?.(); app.model = null; app.show(); },
  };
  const canvas = h('i', { style: 'display: none; background-color: Canvas' }); // an empty page
  const theme = () => card.classList.toggle('dark', isDark(host, canvas));
  const observer = new MutationObserver(theme);
  for (const element of [document.documentElement, document.body]) {
    observer.observe(element, { attributes: true });
  }
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', theme);
  shadow.replaceChildren(h('style', {}, STYLE), canvas, card);
  // arrow keys and letters belong to the controls, and not to the notebook around them
  host.dataset.lmSuppressShortcuts = 'true';
  card.addEventListener('keydown', event => event.stopPropagation());
  const made = view(app);
  card.append(...made.nodes.filter(node => node), problem);
  draw = made.draw;
  theme();
  app.show();
  return app;
}

// Pages and kernels meet here: the HTML in a notebook may be there before its model, or after it

const hall = globalThis.finetuneTeach ??= { apps: new Map(), models: new Map() };

hall.meet ??= key => {
  const model = hall.models.get(key);
  for (const app of hall.apps.get(key) ?? []) if (model && app.model !== model) app.connect(model);
};
hall.part ??= key => {
  for (const app of hall.apps.get(key) ?? []) app.disconnect();
};

function start(key, spec) { // by the script of a saved output
  for (const host of document.querySelectorAll(`[data-explorer="${key}"]`)) {
    if (host.shadowRoot) continue;
    hall.apps.set(key, [...(hall.apps.get(key) ?? []).filter(app => app.host.isConnected),
      Object.assign(mount(host, spec), { host })]);
  }
  hall.meet(key);
}

function render({ model, el }) { // by anywidget, where the widget itself is shown
  const host = h('div');
  el.append(host);
  const app = mount(host, model.get('spec'));
  app.connect(model);
  return () => app.disconnect();
}

export default { render };
