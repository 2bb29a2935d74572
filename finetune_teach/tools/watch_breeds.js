// The explorer of pictures that come apart by breed. Its parts stand in engine/explorer.js.

const ROOM = `
.stage { display: grid; gap: 16px 20px; grid-template-columns: minmax(0, 1fr) }
.stage > div { min-width: 0 }
.wheel { max-width: 520px; margin: 0 auto; touch-action: pan-y }
.wheel text { font-size: 13.5px }
.wheel:focus-visible { outline-offset: -2px }
.wheel text.on { fill: var(--ink); font-weight: 650 }
.dots circle { cursor: pointer }
.dots .wrong { fill: var(--card); stroke-width: 2.2 }
.side { display: grid; gap: 12px; align-content: start }
.shown { display: flex; gap: 12px; align-items: center; min-height: 76px }
.shown i { width: 72px; height: 72px; border-radius: 10px; flex: none; background-size: 1000%;
  background-color: var(--grid) }
@container (max-width: 430px) { .wheel text { font-size: 17px } }
@container (min-width: 640px) { .stage { grid-template-columns: minmax(0, 1fr) 210px } }
`;

function view(app) {
  const { classes, labels, frozen, steps, per_epoch, sprite } = app.data, n = labels.length;
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const places = new Int16Array(bytes(app.data.places).buffer); // step, picture, across and up
  const answers = bytes(app.data.answers); // step, picture
  const plain = name => name.replaceAll('_', ' ');
  const size = 400, middle = size / 2, radius = 142;
  const x = (step, i) => middle + radius * places[2 * (step * n + i)] / 32767;
  const y = (step, i) => middle - radius * places[2 * (step * n + i) + 1] / 32767;
  const angle = k => Math.PI * (0.5 - (2 * k + 1) / classes.length);
  const errors = step => labels.filter((label, i) => answers[step * n + i] !== label).length;
  const wrong = Array.from({ length: steps + 1 }, (_, step) => errors(step) / n);
  app.position = (step, i) => [x(step, i), y(step, i)]; // for tests
  app.wrong = wrong;

  const names = classes.map((name, k) => {
    const [a, b] = [Math.cos(angle(k)), Math.sin(angle(k))];
    const anchor = Math.abs(a) < 0.3 ? 'middle' : a > 0 ? 'start' : 'end';
    const words = plain(name).split(' '), at = [middle + 158 * a, middle - 162 * b];
    return s('text', { 'text-anchor': anchor }, words.map((word, i) => s('tspan', { x: at[0],
      y: at[1] + 4 + 16 * (i - (words.length - 1) / 2) }, word)));
  });
  const dots = labels.map(label => s('circle', { r: 5, style: `stroke: ${hue(label)}` }));
  function point(event) { // at the nearest dot
    const box = svg.getBoundingClientRect(), unit = 436 / box.width, { step } = app.state;
    const [a, b] = [(event.clientX - box.left) * unit - 18, 16 + (event.clientY - box.top) * unit];
    const far = labels.map((_, i) => Math.hypot(x(step, i) - a, y(step, i) - b));
    const i = far.indexOf(Math.min(...far));
    if (far[i] < 20 && i !== app.state.picture) app.move({ picture: i });
  }
  const trail = s('path', { class: 'line', 'stroke-width': 1.8 });
  const mark = s('circle', { r: 10, fill: 'none', stroke: 'var(--ink)', 'stroke-width': 2 });
  const group = s('g', { class: 'dots' }, trail, dots, mark);
  const svg = s('svg', { class: 'wheel', viewBox: '-18 16 436 370', role: 'slider', tabindex: 0,
    'aria-label': 'Picture', 'aria-valuemin': 0, 'aria-valuemax': n - 1,
    'data-control': 'picture', onclick: point,
    onpointermove: event => event.pointerType === 'mouse' && point(event), onkeydown(event) {
      const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!way) return;
      event.preventDefault();
      event.stopPropagation();
      app.move({ picture: ((app.state.picture ?? (way > 0 ? -1 : 0)) + way + n) % n });
    } }, s('circle', { cx: middle, cy: middle, r: radius, fill: 'none', class: 'axis' }), names,
  group);

  const big = h('span', { class: 'big' }), phase = h('p', { role: 'status', class: 'soft' });
  const verdict = h('p'), said = h('p', { style: 'line-height: 1.35' }), thumb = h('i');
  const curve = plot('Errors, step by step', 'Share of errors after each step', 170);
  curve.handle({ label: 'Step', drag: a => a !== undefined && go(Math.round(a)),
    key: (across, up) => go(app.state.step + (across || up)) });
  const go = step => app.move({ step: clamp(step, 0, steps) });

  let job = 0;
  function play() {
    clearInterval(job);
    let at = app.state.step >= steps ? 0 : app.state.step;
    if (matchMedia('(prefers-reduced-motion: reduce)').matches) return go(at ? steps : per_epoch);
    const next = () => {
      if (!svg.isConnected || (at > 0 && app.state.step !== at)) return clearInterval(job);
      go(++at);
      return at >= steps && clearInterval(job);
    };
    app.move({ step: at });
    job = setInterval(next, 90);
    return next();
  }

  function drawPicture(o) {
    const i = o.picture, none = i === null;
    mark.style.display = trail.style.display = none ? 'none' : '';
    said.textContent = 'Point at a dot, or use the arrow keys.';
    thumb.style.backgroundImage = none ? 'none' : `url(${sprite})`;
    svg.setAttribute('aria-valuenow', i ?? 0);
    names.forEach((name, k) => name.classList.toggle('on', !none && k === labels[i]));
    if (none) return svg.setAttribute('aria-valuetext', 'none');
    const guess = answers[o.step * n + i], name = plain(classes[labels[i]]);
    said.textContent = guess === labels[i] ? `A ${name}, and called that.`
      : `A ${name}, but called ${plain(classes[guess])}.`;
    svg.setAttribute('aria-valuetext', said.textContent);
    thumb.style.backgroundPosition = `${(i % 10) * 100 / 9}% `
      + `${Math.floor(i / 10) * 100 / (Math.ceil(n / 10) - 1)}%`;
    mark.setAttribute('cx', x(o.step, i).toFixed(1));
    mark.setAttribute('cy', y(o.step, i).toFixed(1));
    trail.setAttribute('d', 'M' + Array.from({ length: o.step + 1 }, (_, step) =>
      `${x(step, i).toFixed(1)} ${y(step, i).toFixed(1)}`).join('L'));
    trail.style.stroke = hue(labels[i]);
  }

  function draw() {
    const o = app.state, step = clamp(Math.round(o.step), 0, steps), asked = o.guess === null;
    result.hidden = asked;
    dots.forEach((dot, i) => {
      const right = answers[step * n + i] === labels[i];
      dot.setAttribute('cx', x(step, i).toFixed(1));
      dot.setAttribute('cy', y(step, i).toFixed(1));
      dot.setAttribute('class', right ? '' : 'wrong');
      dot.style.fill = right ? hue(labels[i]) : '';
    });
    drawPicture({ ...o, step });
    big.textContent = percent(wrong[step]);
    phase.textContent = step === 0 ? 'Nothing has learned yet: the head is random.'
      : step <= frozen ? `Step ${step}: the body is frozen. Its dots stand still.`
        : `Step ${step} of ${steps}: all layers learn.`;
    verdict.textContent = asked ? '' : `You said ${o.guess}. While the body is frozen, no dot `
      + `moves: the head alone brings the errors from ${percent(wrong[0])} to `
      + `${percent(wrong[frozen])}. `
      + `Then all layers learn, the breeds come apart, and ${percent(wrong[steps])} remain.`;
    curve.draw({ x: { min: 0, max: steps, title: 'step' },
      y: { min: 0, max: 1.25, format: percent },
      regions: [{ from: 0, to: frozen, label: 'body frozen' }],
      lines: [{ x: wrong.map((_, i) => i), y: wrong, colour: hue(1) }],
      handles: [{ x: step, y: wrong[step],
        text: `step ${step}, errors ${percent(wrong[step])}` }] });
  }

  const intro = question(app, 'guess', {
    ask: 'In the first epoch only the head learns, the body is frozen. Will the dots come apart?',
    of: ['yes', 'a little', 'no'].map(value => ({ value, label: value })), then: () => play() });
  const button = h('button', { type: 'button', class: 'main', 'data-control': 'play',
    style: 'justify-self: start',
    onclick: play }, 'Play');
  const result = h('div', { class: 'side' },
    h('div', {}, h('span', { class: 'name' }, 'Errors by now'), ' ', big), phase, button);
  const shown = h('div', { class: 'shown' }, thumb, said);
  const under = h('div', { class: 'stack' }, verdict, curve.node);
  app.control({ node: under, sync(state) { under.hidden = state.guess === null; } });
  const step = slider(app, 'step', { label: 'Step', min: 0, max: steps });
  app.control({ node: step, sync(state) { step.hidden = state.guess === null; } });
  return { draw, nodes: [h('style', {}, ROOM), h('p', { class: 'soft' }, app.data.about),
    h('div', { class: 'stage' }, h('div', {}, svg, step),
      h('div', { class: 'side' }, intro, result, shown)), under] };
}
