// The explorer of what a high learning rate does to a body. Its parts stand in engine/explorer.js.

const PICTURES = `
.filters { display: grid; grid-template-columns: repeat(8, 1fr); gap: 3px; align-content: start }
.filters canvas { width: 100%; aspect-ratio: 1; display: block; border-radius: 4px;
  image-rendering: pixelated }
.meter { position: relative }
.meter .bar { height: 22px }
.meter .bar i { transition-duration: .15s }
.meter b { position: absolute; top: -4px; height: 30px; width: 2px; background: var(--ink);
  left: calc(100% * var(--at)) }
.meter span { position: absolute; top: 28px; left: calc(100% * var(--at)); font-size: 12.5px;
  color: var(--soft); transform: translateX(var(--shift, -50%)); white-space: nowrap }
.meter { margin-bottom: 28px }
`;

function filters(side, n) { // small pictures of the first layer's weights
  const all = Array.from({ length: n }, () => h('canvas', { width: side, height: side }));
  const pens = all.map(canvas => canvas.getContext('2d'));
  const image = new ImageData(side, side), places = side * side;
  const node = h('div', { class: 'filters', role: 'img' }, all);
  return { node, draw(numbers, words) { // Int8Array: filter, colour, row, column
    pens.forEach((pen, i) => {
      for (let p = 0; p < places; p++) {
        for (let c = 0; c < 3; c++) { // zero is grey
          image.data[4 * p + c] = 127.5 * (1 + numbers[(3 * i + c) * places + p] / 127);
        }
        image.data[4 * p + 3] = 255;
      }
      pen.putImageData(image, 0, 0);
    });
    node.setAttribute('aria-label', words);
  } };
}

function view(app) {
  const { rates, knows, right, side, guessing } = app.data;
  const read = text => Int8Array.from(atob(text), c => c.charCodeAt(0));
  const before = read(app.data.before), after = app.data.after.map(read);
  const place = lr => nearest(rates, lr);
  const start = mean(knows.before), trained = knows.trained.map(mean);
  const half = trained.findIndex(value => value < start / 2);
  const pictures = filters(side, before.length / (3 * side * side));
  const big = h('span', { class: 'big' }), fact = h('p', { role: 'status', class: 'soft' });
  const level = h('i', { style: `--colour: ${hue(2)}` });
  const mark = (value, name, shift) => [h('b', { style: `--at: ${value}` }), h('span',
    { style: `--at: ${value}; --shift: ${shift}` }, `${name} ${percent(value)}`)];
  const meter = h('div', { class: 'meter' }, h('div', { class: 'bar' }, level),
    mark(start, 'before', '-50%'), mark(guessing, 'guessing', '-20%'));
  const verdict = h('p');
  const curve = plot('What the body knows after an epoch at each rate',
    'What the body knows, against learning rate', 190);
  const code = copyable('Copy the training');

  curve.handle({ label: 'Learning rate', drag: x => x && app.move({ lr: rates[place(x)] }),
    key(across, up) {
      const i = place(app.state.lr) + (across || up);
      app.move({ lr: rates[clamp(i, 0, rates.length - 1)] });
    } });

  function melt(target) { // from low rates up to the guess, one measured rate after the other
    let i = 0, job = 0;
    if (matchMedia('(prefers-reduced-motion: reduce)').matches) return app.move({ lr: target });
    const next = () => {
      if (i > 0 && app.state.lr !== rates[i - 1]) return clearInterval(job); // somebody moved it
      app.move({ lr: rates[i] });
      if (rates[i++] >= target) clearInterval(job);
    };
    job = setInterval(next, 110);
    return next();
  }

  function drawCurve(o, i) {
    const x = rates, all = knows[o.frozen ? 'frozen' : 'trained'], y = all.map(mean);
    const colour = hue(o.frozen ? 2 : 0);
    const seeds = knows.before.map((_, k) => ({ x, y: all.map(values => values[k]), colour,
      width: 0, dots: 3, opacity: 0.45 }));
    curve.draw({ x: { min: rates[0] * 0.9, max: rates.at(-1) * 1.1, log: true, format: rate,
      title: 'learning rate (a dot is a seed)' },
    y: { min: 0, max: 1, format: percent },
    rules: o.guess ? [{ at: o.guess, label: 'your guess' }] : [],
    lines: [{ x: [rates[0], rates.at(-1)], y: [start, start], colour: 'var(--soft)', dash: '5 4',
      width: 1.3 }, ...seeds, { x, y, colour }],
    handles: [{ x: rates[i], y: y[i], now: Math.log10(rates[i]),
      text: `${rate(rates[i])}, the body knows ${percent(y[i])}` }] });
  }

  function draw() {
    const o = app.state, i = place(o.lr), kind = o.frozen ? 'frozen' : 'trained';
    const asked = o.guess === null, value = asked ? start : mean(knows[kind][i]);
    intro.hidden = !asked;
    results.hidden = under.hidden = asked;
    const intact = asked || o.frozen;
    pictures.draw(intact ? before : after[i], intact ? 'The filters, as photos have made them'
      : `The filters after an epoch at ${rate(rates[i])}`);
    level.style.transform = `scaleX(${value.toFixed(3)})`;
    big.textContent = percent(value);
    fact.textContent = `After one epoch at ${rate(rates[i])}${o.frozen ? ', body frozen' : ''}, a `
      + `linear layer can name ${percent(value)} by what the body gives. The network with its `
      + `new head names ${percent(mean(right[kind][i]))}. (Means of ${knows.before.length} seeds.)`;
    verdict.textContent = asked ? '' : `You said ${rate(o.guess)}: there, `
      + `${percent(trained[place(o.guess)])} `
      + `is left. At ${rate(rates[half])} it is less than half of what it knew.`;
    code.show(`learn.${o.frozen ? '' : 'un'}freeze(); learn.fit(1, ${rate(rates[i])})`);
    drawCurve(o, i);
  }

  const lr = slider(app, 'lr', { label: 'Learning rate', min: rates[0], max: rates.at(-1),
    step: 0.25, log: true, format: rate });
  const intro = question(app, 'guess', { ask: 'At which learning rate does it forget?',
    of: app.data.guesses.map(value => ({ value, label: rate(value) })),
    then(value) { melt(value); lr.querySelector('input').focus({ preventScroll: true }); } });
  const results = h('div', { class: 'stack', style: 'gap: 12px; align-content: start' }, lr,
    toggle(app, 'frozen', 'body frozen: only the head learns'),
    h('div', {}, h('div', { class: 'row', style: 'justify-content: space-between' },
      h('span', { class: 'name' }, 'What the body knows'), big), meter), fact);
  const under = h('div', { class: 'stack' }, verdict, curve.node, code.node);
  return { draw, nodes: [h('style', {}, PICTURES),
    h('p', {}, app.data.about), h('div', { class: 'two' }, pictures.node,
      h('div', {}, intro, results)), under] };
}
