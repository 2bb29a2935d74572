// The explorer of freezing. What it is made of stands in engine/explorer.js.

const LOOKS = `
.columns { display: grid; grid-template-columns: repeat(var(--n), 1fr); gap: 10px }
button.column { display: flex; flex-direction: column; gap: 4px; align-items: stretch;
  text-align: left; padding: 8px; border-radius: 12px; background: var(--card); min-width: 0;
  transition: background .35s, border-color .35s }
button.column[aria-pressed] { box-shadow: none; border-color: var(--line) }
button.column.learns[aria-pressed] { border-color: var(--c1);
  background: color-mix(in srgb, var(--c1) 12%, var(--card)) }
.layer { border-radius: 6px; padding: 2px 7px; background: var(--grid); color: var(--soft);
  font-size: 12.5px; display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 8px;
  overflow-wrap: anywhere; transition: background .35s, color .35s }
.learns .layer { background: color-mix(in srgb, var(--c1) 30%, var(--card)); color: var(--ink) }
.layer.rest { background: none }
.count { margin-top: auto; padding-top: 4px; font-variant-numeric: tabular-nums }
.ends { display: flex; justify-content: space-between; gap: 12px }
.lane { position: relative; height: 12px; margin: 0 10px 0 0 }
.flow { position: absolute; inset: 3px 0; border-radius: 3px; animation: flow 1.2s linear infinite;
  background: 0 0 / 36px
  repeating-linear-gradient(90deg, var(--colour) 0 9px, transparent 9px 18px) }
.flow.back { animation-direction: reverse; transition: left .35s }
.tip { position: absolute; top: 50%; width: 0; height: 0; border: 8px solid transparent;
  transform: translateY(-50%) }
.none { position: absolute; top: 5px; height: 2px; left: 0; background: var(--line);
  transition: width .35s }
.loss { position: absolute; right: 0; top: 12px }
.lock { position: absolute; top: 50%; width: 40px; height: 40px; margin: -20px; cursor: grab;
  border-radius: 50%; background: var(--card); border: 3px solid var(--ink); touch-action: none;
  display: grid; place-items: center; transition: left .35s }
.lock:active { cursor: grabbing }
.lock:focus-visible { border-radius: 50% }
.lock svg { width: 20px; height: 20px; overflow: visible }
.lock path { fill: none; stroke: var(--ink); stroke-width: 2.4; stroke-linecap: round;
  transition: transform .35s; transform-origin: 15px 10px }
.lock rect { fill: var(--ink) }
.lock.open path { transform: rotate(28deg) }
.costs { display: grid; grid-template-columns: minmax(110px, auto) 1fr minmax(96px, auto);
  gap: 8px 12px; align-items: center }
.cost { display: contents }
@keyframes flow { to { background-position: 36px 0 } }
@container (max-width: 430px) { .columns { gap: 5px } button.column { padding: 6px 4px }
  .layer { padding: 2px 4px; font-size: 12px } .wide { display: none }
  .costs { display: block } .cost { display: grid; grid-template-columns: 1fr auto; gap: 2px 12px;
  margin-bottom: 8px } .cost .bar { grid-column: 1 / 3; order: 3 } }
`;

const ANSWERS = ['more than before', 'as much as before', 'about half', 'next to nothing'];
const shortly = value => value >= 10 ? String(Math.round(value)) : value.toFixed(1);
const grouped = count => count.toLocaleString('en-US');

function left({ before, classes }, knows) { // place in ANSWERS
  const chance = 1 / classes, share = (knows - chance) / (before - chance); // of what it knew
  return share > 1.1 ? 0 : share > 0.8 ? 1 : share > 0.25 ? 2 : 3;
}

function view(app) {
  const { columns, costs, runs, rates, batch } = app.data, last = columns.length - 1;
  const names = columns.map(column => column.name);
  const starts = names.map((name, i) => i === 0 ? 'everything' : i === last ? `the ${name} alone`
    : names.slice(i).map(each => `the ${each}`).join(' and '));

  // The network, and what flows through it

  const start = number => app.move({ start: clamp(number, 0, last) });
  const boxes = columns.map(({ name, weights, layers }, i) => {
    const shown = layers.length > 6 ? layers.slice(0, 5) : layers;
    const rest = layers.length - shown.length;
    const says = h('span', { class: 'unit' });
    const node = h('button', { type: 'button', class: 'column', onclick: () => start(i),
      'aria-label': `Learning starts at the ${name}` },
    h('span', { class: 'name' }, name), says,
    shown.map(([layer, size]) => h('span', { class: 'layer' }, layer,
      h('span', { class: 'wide' }, grouped(size)))),
    rest ? h('span', { class: 'layer rest' }, `and ${rest} more`) : null,
    h('span', { class: 'count' }, h('strong', {}, grouped(weights)), ' weights'));
    return { node, sync(first) {
      node.classList.toggle('learns', i >= first);
      node.setAttribute('aria-pressed', i === first);
      says.textContent = i >= first ? 'learns' : 'frozen';
    } };
  });
  const back = h('div', { class: 'flow back', style: '--colour: var(--c1); right: 0' },
    h('div', { class: 'tip', style: 'left: 13px; border-right-color: var(--c1)' }));
  const none = h('div', { class: 'none' });
  const lane = h('div', { class: 'lane', style: 'height: 44px; margin: 0' });
  const inside = h('div', { class: 'lane', style: 'margin: 0 40px 0 0; top: 16px' },
    none, back);
  const loss = h('span', { class: 'soft loss' }, 'loss');
  const lock = h('div', { class: 'lock', role: 'slider', tabindex: 0, 'aria-valuemin': 0,
    'aria-valuemax': last, 'aria-label': 'Lock: where learning starts', 'data-control': 'start' },
  s('svg', { viewBox: '0 0 20 20', 'aria-hidden': 'true' },
    s('path', { d: 'M5 10V6a5 5 0 0 1 10 0v4' }),
    s('rect', { x: 2, y: 9, width: 16, height: 11, rx: 2.5 })));
  let dragged = false;
  lock.addEventListener('pointerdown', event => {
    lock.setPointerCapture(event.pointerId);
    event.preventDefault();
    lock.focus({ preventScroll: true, focusVisible: false });
    dragged = true;
  });
  lock.addEventListener('pointermove', event => {
    const box = lane.getBoundingClientRect();
    const place = Math.round((event.clientX - box.left) / box.width * columns.length);
    if (dragged && clamp(place, 0, last) !== app.state.start) start(place);
  });
  for (const name of ['pointerup', 'pointercancel']) {
    lock.addEventListener(name, () => { dragged = false; });
  }
  lock.addEventListener('keydown', event => {
    const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!way) return;
    event.preventDefault();
    start(app.state.start + way);
  });
  lane.append(inside, loss, lock);
  const flows = h('p', { role: 'status' });
  function flow(first) {
    const place = first / columns.length;
    lock.style.left = first ? `${100 * place}%` : '20px';
    back.style.left = none.style.width = first ? `calc(${100 * place}% + ${40 * place}px)` : '20px';
    lock.classList.toggle('open', first === 0);
    const frozen = names.slice(0, first).map(name => `the ${name}`).join(' and ');
    lock.setAttribute('aria-valuenow', first);
    lock.setAttribute('aria-valuetext', `${starts[first]}${first ? `; frozen: ${frozen}` : ''}`);
    flows.textContent = first ? `Gradients run back from the loss, and stop at the lock: ${frozen} `
      + `${first > 1 ? 'are' : 'is'} frozen.`
      : 'Gradients run back from the loss, through all layers: nothing is frozen.';
  }

  // What a step costs

  const rows = [['Weights that learn', 0], ['Time of a step', 2], ['Memory for the way back', 1]]
    .map(([label, k]) => {
      const fill = h('i', { style: '--colour: var(--c0)' }), text = h('span', { class: 'value' });
      const most = Math.max(...costs.map(cost => cost[k]));
      const node = h('div', { class: 'cost' }, h('span', {}, label),
        h('div', { class: 'bar' }, fill), text);
      return { node, sync(first) {
        const value = costs[first][k];
        fill.style.transform = `scaleX(${value / most})`;
        text.textContent = k === 1 ? `${shortly(value / 2 ** 20)} of ${shortly(most / 2 ** 20)} MB`
          : percent(value / most);
      } };
    });
  const kept = h('p', { class: 'soft' });
  const price = h('div', { class: 'stack', style: 'gap: 8px' },
    h('h3', {}, 'What a step costs'),
    h('div', { class: 'costs' }, rows.map(row => row.node)), kept);
  function pay(first) {
    for (const row of rows) row.sync(first);
    const reused = costs[first][3], all = costs[0][2];
    kept.textContent = `Against a step in which everything learns; ${batch} pictures. `
      + (reused === null ? '' : 'And a frozen body always gives the same features. They can be '
      + `kept: then a step takes ${percent(reused / all)} of the time.`);
  }

  // What an epoch does to the body

  const study = runs.length ? epochs(app, starts) : null;
  function draw() {
    const { start: first } = app.state;
    boxes.forEach(box => box.sync(first));
    flow(first);
    pay(first);
    study?.draw(app.state);
  }
  const network = h('div', { class: 'stack', style: 'gap: 6px' },
    h('div', { class: 'ends soft' }, h('span', {}, 'a picture'), h('span', {}, 'its answer')),
    h('div', { class: 'lane' },
      h('div', { class: 'flow', style: '--colour: var(--c0); right: 6px' }),
      h('div', { class: 'tip', style: 'right: -9px; border-left-color: var(--c0)' })),
    h('div', { class: 'columns', style: `--n: ${columns.length}` }, boxes.map(box => box.node)),
    lane, flows);
  return { draw, nodes: [h('style', {}, LOOKS), network, ...study?.nodes ?? [], price] };
}

function epochs(app, starts) {
  const { runs, rates, heads, before, n, classes } = app.data;
  const of = (o, first, lr) => runs.filter(run =>
    run[0] === o.head && run[1] === first && run[2] === lr);
  const found = (o, k) => mean(of(o, o.start, o.rate).map(run => run[k]));
  app.found = o => ({ knows: found(o, 4), error: found(o, 5) }); // for tests

  const where = h('strong', { class: 'value' }), speed = h('strong', { class: 'value' });
  const buttons = ANSWERS.map(answer => h('button', { type: 'button', 'data-control': 'guess',
    onclick: () => { asked = { ...app.state }; app.move({ guess: answer }); } }, answer));
  const question = h('div', { class: 'stack', style: 'gap: 10px' }, h('h3', {}, 'Guess first'),
    h('p', {}, `The features of the body alone tell the breed of ${percent(before)} of ${n} new `
      + 'drawings. A new head is put on it, which knows nothing yet. Then for one epoch ', where,
    ', at a rate of ', speed, '. How much will the body know after it?'),
    h('div', { class: 'row', style: 'gap: 8px' }, buttons));
  let asked = null;
  const ends = { min: 0.7 * Math.min(...rates), max: 1.5 * Math.max(...rates) };

  const finding = h('h3'), verdict = h('p', { class: 'soft' });
  const head = choice(app, 'head', { label: 'Head',
    of: heads.map(value => ({ value, label: value === 'trained' ? 'trained before' : value })) });
  const kinds = [['What the body knows', 4], ['Errors of the whole network', 5]];
  const results = kinds.map(([name, k]) => {
    const big = h('span', { class: 'big' }), seeds = h('span', { class: 'soft' });
    return { k, big, seeds, plot: plot(name, `${name} after an epoch, by rate`, 190) };
  });
  const told = h('div', {}, finding, verdict);
  const answers = h('div', { class: 'stack' }, told, h('div', { class: 'two' },
    results.map(({ big, seeds, plot: { node } }) => {
      node.firstChild.after(h('div', { class: 'row', style: 'gap: 0 10px' }, big, seeds));
      return node;
    })), h('p', { class: 'soft' }, 'The body knows a drawing if its features are nearer to the '
      + 'mean of its own breed than to that of any other. A dot is a seed.'));

  function draw(o) {
    const open = Boolean(o.guess);
    question.hidden = open;
    answers.hidden = head.hidden = !open;
    const many = o.start > 0 && o.start < starts.length - 1;
    where.textContent = `${starts[o.start]} learn${many ? '' : 's'}`;
    speed.textContent = rate(o.rate);
    if (!open) return;
    asked ??= { ...o };
    const knows = found(asked, 4), right = left(app.data, knows);
    finding.textContent = ANSWERS[right][0].toUpperCase() + ANSWERS[right].slice(1);
    verdict.textContent = `You said: ${o.guess}. Before, the body knew ${percent(before)}, after `
      + `an epoch of ${starts[asked.start]} at ${rate(asked.rate)} it knows ${percent(knows)}; `
      + `guessing gives ${percent(1 / classes)}. Is it the random head, or the rate? Move `
      + 'the lock, the rate and the head.';
    for (const { k, big, seeds, plot: figure } of results) {
      const three = of(o, o.start, o.rate).map(run => run[k]);
      big.textContent = percent(mean(three));
      const each = three.map(value => Math.round(100 * value));
      seeds.textContent = `${each.length} seeds: ${each.join(', ')}\u202f%`;
      const lines = starts.map((start, first) => {
        const here = first === o.start, colour = hue([1, 4, 0][first] ?? first);
        const y = rates.map(lr => mean(of(o, first, lr).map(run => run[k])));
        return { x: rates, y, label: start.replaceAll('the ', ''), colour,
          opacity: here ? 1 : 0.35, width: here ? 3 : 2 };
      });
      const dots = rates.flatMap(lr => of(o, o.start, lr)).map(run =>
        ({ x: [run[2]], y: [run[k]], colour: 'var(--ink)', dots: run[2] === o.rate ? 4 : 2 }));
      const level = k === 4 ? [{ x: [ends.min, ends.max], y: [before, before],
        colour: 'var(--soft)', dash: '4 4', width: 1.2, label: 'before' }] : [];
      figure.draw({ x: { ...ends, log: true, at: rates, format: rate, title: 'rate' },
        y: { min: 0, max: 1, format: percent },
        lines: [...level, ...lines, ...dots] });
    }
  }
  const speeds = choice(app, 'rate', { label: 'Rate',
    of: rates.map(value => ({ value, label: rate(value) })) });
  return { draw, nodes: [h('div', { class: 'row', style: 'gap: 8px 28px' }, speeds, head), question,
    answers] };
}
