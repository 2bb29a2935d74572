// The explorer of one-cycle. What it is made of stands in engine/explorer.js.

// The schedule of fine_tune, as `one_cycle` and `fine_tune_schedule` in Python compute it

const cosine = (start, end, share) => start + (end - start) * (1 - Math.cos(Math.PI * share)) / 2;
function share(position, start, end) { // in float32, as there
  const f = Math.fround, way = f(end - start);
  return way ? f(f(f(position) - f(start)) / way) : 0;
}
function cycle(steps, peak, div, divFinal, warm, moms) {
  const at = (step, first, middle, last) => step / steps < warm
    ? cosine(first, middle, share(step / steps, 0, warm))
    : cosine(middle, last, share(step / steps, warm, 1));
  return Array.from({ length: steps }, (_, i) =>
    [at(i, peak / div, peak, peak / divFinal), at(i, ...moms)]);
}
function spread(low, high, n) {
  const factor = (high / low) ** (1 / Math.max(n - 1, 1));
  return Array.from({ length: n }, (_, i) => high / factor ** (n - 1 - i));
}
function fineTune(steps, o, groups) { // [step][group]: rate and momentum; null: frozen
  const moms = [o.mom_high, o.mom_low, o.mom_high];
  const head = cycle(o.freeze_epochs * steps, o.base_lr, 25, o.div_final, 0.99, moms);
  const all = spread(o.base_lr / 2 / o.lr_mult, o.base_lr / 2, groups).map(peak =>
    cycle(o.epochs * steps, peak, o.div, o.div_final, o.pct_start, moms));
  return [...head.map(pair => [...Array(groups - 1).fill(null), pair]),
    ...Array.from({ length: o.epochs * steps }, (_, i) => all.map(group => group[i]))];
}

// A small head, trained in the page: AdamW, as PyTorch computes it

function bytes(text) {
  return Int8Array.from(atob(text), c => c.charCodeAt(0));
}
function random(seed) { // mulberry32
  return () => {
    seed = seed + 0x6D2B79F5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
}
class Head { // width inputs, hidden units, classes
  constructor({ width, hidden, classes, batch, scale, train, valid, labels, valid_labels }) {
    Object.assign(this, { width, hidden, classes, batch });
    const read = text => Float64Array.from(bytes(text), value => value * scale);
    [this.x, this.xValid] = [read(train), read(valid)];
    [this.y, this.yValid] = [bytes(labels), bytes(valid_labels)];
    this.steps = Math.floor(this.y.length / batch);
    const sizes = [hidden * width, hidden, classes * hidden, classes]; // weights and biases
    this.starts = sizes.map((_, i) => sizes.slice(0, i).reduce((a, b) => a + b, 0));
    this.size = sizes.reduce((a, b) => a + b);
    [this.units, this.back] = [new Float64Array(hidden), new Float64Array(hidden)];
    this.logits = new Float64Array(classes);
  }

  random(draw) { // weights to begin with: like `create_head`
    const w = new Float64Array(this.size), [, bias, out, end] = this.starts;
    const normal = () => Math.sqrt(-2 * Math.log(1 - draw())) * Math.cos(2 * Math.PI * draw());
    for (let i = 0; i < bias; i++) w[i] = normal() * Math.sqrt(2 / this.width);
    for (let i = out; i < end; i++) w[i] = normal() * 0.01;
    return w;
  }

  predict(w, x, row) { // probabilities, left in `logits`
    const { width, hidden, classes, units, logits } = this, [, bias, out, end] = this.starts;
    for (let k = 0, i = 0; k < hidden; k++) {
      let sum = w[bias + k];
      for (let j = row * width; j < (row + 1) * width; j++) sum += w[i++] * x[j];
      units[k] = sum > 0 ? sum : 0;
    }
    let top = -Infinity, total = 0;
    for (let c = 0, i = out; c < classes; c++) {
      let sum = w[end + c];
      for (let k = 0; k < hidden; k++) sum += w[i++] * units[k];
      logits[c] = sum;
      if (sum > top) top = sum;
    }
    for (let c = 0; c < classes; c++) total += logits[c] = Math.exp(logits[c] - top);
    for (let c = 0; c < classes; c++) logits[c] /= total;
    return logits;
  }

  learn(w, g, row) { // adds to the gradient; gives the loss
    const { x, y, width, hidden, classes, batch, units, back } = this;
    const [, bias, out, end] = this.starts, p = this.predict(w, x, row);
    const loss = -Math.log(Math.max(p[y[row]], 1e-300)) / batch;
    back.fill(0);
    for (let c = 0, i = out; c < classes; c++) {
      const d = (p[c] - (c === y[row])) / batch;
      g[end + c] += d;
      for (let k = 0; k < hidden; k++, i++) {
        g[i] += d * units[k];
        back[k] += d * w[i];
      }
    }
    for (let k = 0; k < hidden; k++) {
      if (units[k] <= 0) continue;
      g[bias + k] += back[k];
      for (let j = 0, i = k * width; j < width; j++, i++) g[i] += back[k] * x[row * width + j];
    }
    return loss;
  }

  train(schedule) { // [rate, momentum] of each step; gives losses and the error
    const { batch, size: n } = this, [, bias, out, end] = this.starts;
    const draw = random(1), w = this.random(draw), order = Array.from(this.y.keys());
    const [g, m, v] = [0, 0, 0].map(() => new Float64Array(n)), losses = [];
    schedule.forEach(([lr, mom], t) => {
      const place = t % this.steps;
      for (let i = order.length - 1; place === 0 && i > 0; i--) { // a new epoch: shuffle
        const j = Math.floor(draw() * (i + 1));
        [order[i], order[j]] = [order[j], order[i]];
      }
      g.fill(0);
      let loss = 0;
      for (let i = 0; i < batch; i++) loss += this.learn(w, g, order[place * batch + i]);
      const step = lr / (1 - mom ** (t + 1)), root = Math.sqrt(1 - 0.99 ** (t + 1));
      const decay = 1 - lr * 0.01;
      for (let i = 0; i < n; i++) {
        if (i < bias || (i >= out && i < end)) w[i] *= decay;
        m[i] += (1 - mom) * (g[i] - m[i]);
        v[i] = 0.99 * v[i] + 0.01 * g[i] * g[i];
        w[i] -= step * m[i] / (Math.sqrt(v[i]) / root + 1e-5);
      }
      losses.push(loss);
    });
    return { losses, error: this.error(w) };
  }

  error(w) {
    let wrong = 0;
    this.yValid.forEach((label, row) => {
      const p = this.predict(w, this.xValid, row);
      for (let c = 0; c < this.classes; c++) {
        if (p[c] > p[label]) { wrong++; break; }
      }
    });
    return wrong / this.yValid.length;
  }
}

function smooth(values, keep = 0.8) { // with the start put right
  let sum = 0, weight = 0;
  return values.map(value => {
    [sum, weight] = [keep * sum + (1 - keep) * value, keep * weight + 1 - keep];
    return sum / weight;
  });
}

function view(app) {
  const { steps, names, usual } = app.data, head = new Head(app.data.head);
  const last = names.length - 1, range = { min: 1e-5, max: 1, log: true, format: rate };
  const of = (name, label, options) => slider(app, name, { label, ...options });
  const rates = plot('Learning rate of each layer group', 'Learning rate at each step', 190);
  const momentum = plot('Momentum', 'Momentum at each step', 150);
  const losses = plot('Training loss of the head', 'Training loss at each step', 190);
  const errors = plot('Error after the run, for every peak', 'Error against peak rate', 190);
  const code = copyable('Copy the call'), words = h('p', { role: 'status', class: 'soft' });
  const big = h('span', { class: 'big' });
  const warm = o => o.freeze_epochs + o.pct_start * o.epochs;
  rates.handle({ label: 'Peak: up and down for the rate, left and right for the warm-up',
    drag(x, y) { // the axis stays while it is dragged; at the end there is neither x nor y
      held = x === undefined ? 0 : held || axisTop(app.state);
      if (!held) return draw();
      const o = app.state, changes = { base_lr: clamp(twoDigits(2 * y), 1e-5, 1) };
      changes.pct_start = clamp(Math.round((x - o.freeze_epochs) / o.epochs * 20) / 20, 0.05, 0.95);
      return app.move(changes);
    },
    key(across, up) {
      const o = app.state;
      app.move({ base_lr: clamp(twoDigits(o.base_lr * 10 ** (up / 20)), 1e-5, 1),
        pct_start: clamp(Math.round(20 * o.pct_start + across) / 20, 0.05, 0.95) });
    } });
  const toPeak = value => value && app.move({ base_lr: clamp(twoDigits(value), 1e-5, 1) });
  errors.handle({ label: 'Peak rate', drag: toPeak,
    key: (across, up) => toPeak(app.state.base_lr * 10 ** ((across || up) / 20)) });
  const axisTop = o => nice(1.15 * o.base_lr * (o.freeze_epochs ? 1 : 0.5));
  let grid = [], job = 0, known = '', held = 0;
  const peaks = Array.from({ length: 26 }, (_, i) => 10 ** (i / 5 - 5));
  const train = o => head.train(fineTune(head.steps, o, 1).map(groups => groups[0]));

  function sweep(o, number) { // the error for every peak, a few at a time
    const begun = performance.now();
    while (grid.length < peaks.length && performance.now() - begun < 7) {
      grid.push(train({ ...o, base_lr: peaks[grid.length] }).error);
    }
    if (number !== job) return;
    if (grid.length === peaks.length) drawErrors(app.state);
    else setTimeout(() => { if (number === job) sweep(o, number); });
  }
  let seen = [], here = { error: 0 };
  function drawErrors(o) {
    const fresh = grid.length === peaks.length;
    if (fresh) seen = grid;
    errors.draw({ x: { ...range, title: 'peak rate' },
      y: { min: 0, max: 1, format: percent },
      lines: seen.length ? [{ x: peaks, y: seen, colour: hue(0), opacity: fresh ? 1 : 0.35 }] : [],
      handles: [{ x: o.base_lr, y: here.error, now: Math.log10(o.base_lr),
        text: `${rate(o.base_lr)}, error ${percent(here.error)}` }] });
  }

  function drawRates(o, schedule, total) {
    const x = schedule.map((_, i) => (i + 1) / steps);
    const top = Math.max(...schedule.map(groups => groups[last][0]));
    const low = schedule.flat().filter(Boolean).map(pair => pair[0]);
    const bottom = Math.max(Math.min(...low), top / 1e6);
    const series = (i, k) => names.map((label, group) => {
      const from = group === last ? 0 : o.freeze_epochs * steps;
      return { label: k ? '' : label, colour: hue(group), x: x.slice(from),
        y: schedule.slice(from).map(groups => Math.max(groups[group][k], k ? 0 : bottom)) };
    });
    const axis = { min: 0, max: total, title: 'epochs' };
    const regions = o.freeze_epochs ? [{ from: 0, to: o.freeze_epochs, label: 'body frozen' }] : [];
    const y = o.log ? { min: bottom, max: top * 2, log: true, format: rate }
      : { min: 0, max: held || axisTop(o), format: value => value ? rate(value) : '0' };
    rates.draw({ x: axis, y, left: 52, regions, lines: series(0, 0),
      handles: [{ x: warm(o), y: o.base_lr / 2,
        text: `peak ${rate(o.base_lr)}, warm-up ${percent(o.pct_start)}` }] });
    momentum.draw({ x: axis, y: { min: 0.45, max: 1 }, left: 52, lines: series(0, 1) });
  }

  let waiting = 0;
  function draw() {
    const o = app.state;
    drawRates(o, fineTune(steps, o, names.length), o.epochs + o.freeze_epochs);
    code.show(call(o));
    waiting ||= requestAnimationFrame(study); // once, before the page shows this
  }

  function study() {
    waiting = 0;
    const o = app.state, total = o.epochs + o.freeze_epochs;
    here = train(o);
    const curve = smooth(here.losses), x = here.losses.map((_, i) => (i + 1) / head.steps);
    losses.draw({ x: { min: 0, max: total, title: 'epochs' },
      y: { min: 0, max: Math.log(head.classes) * 1.25 },
      regions: o.freeze_epochs ? [{ from: 0, to: o.freeze_epochs }] : [],
      lines: [{ x, y: here.losses, colour: hue(2), opacity: 0.3, width: 1 },
        { x, y: curve, colour: hue(2), width: 2.6 }] });
    const { base_lr, lr_mult, log, ...others } = o, settings = JSON.stringify(others);
    if (settings !== known) {
      [known, grid] = [settings, []];
      job++;
      setTimeout(() => sweep({ ...o }, job));
    }
    drawErrors(o);
    big.textContent = percent(here.error);
    words.textContent = `errors on ${head.yValid.length} drawings it has not seen, `
      + `with a peak of ${rate(base_lr)}`;
  }

  function call(o) { // what differs from the usual
    const named = ['base_lr', 'freeze_epochs', 'lr_mult', 'pct_start', 'div', 'div_final']
      .filter(name => o[name] !== usual[name]).map(name => `${name}=${o[name]}`);
    if (o.mom_high !== usual.mom_high || o.mom_low !== usual.mom_low) {
      named.push(`moms=(${o.mom_high}, ${o.mom_low}, ${o.mom_high})`);
    }
    return `learn.fine_tune(${[o.epochs, ...named].join(', ')})`;
  }
  app.schedule = (options = app.state) => fineTune(steps, options, names.length); // for tests
  app.train = (options = app.state) => train(options);

  const more = h('details', {}, h('summary', {}, 'More controls, and the momentum'),
    h('div', { class: 'stack' }, h('div', { class: 'grid' },
      of('epochs', 'Epochs', { min: 1, max: 20 }),
      of('freeze_epochs', 'Frozen epochs', { min: 0, max: 5 }),
      of('div', 'Peak : first rate', { min: 1, max: 50, step: 0.5 }),
      of('div_final', 'Peak : last rate', { min: 1, max: 1e6, log: true, format: rate }),
      of('mom_high', 'Momentum at the ends', { min: 0.5, max: 0.99, step: 0.01 }),
      of('mom_low', 'Momentum at the peak', { min: 0.5, max: 0.99, step: 0.01 })),
    momentum.node));
  return { draw, nodes: [
    h('div', { class: 'grid' },
      of('base_lr', 'Peak rate', { ...range, hint: 'base_lr: the head, while frozen' }),
      of('pct_start', 'Warm-up', { min: 0.05, max: 0.95, step: 0.05, format: percent,
        hint: 'pct_start: the share in which the rate rises' }),
      of('lr_mult', 'Head : early body', { min: 1, max: 1000, log: true,
        hint: 'lr_mult: how much slower the early body is' })),
    h('div', {}, rates.node, toggle(app, 'log', 'logarithmic scale')), code.node,
    h('div', {}, h('div', { class: 'row' }, big, words), h('p', { class: 'soft' }, app.data.about)),
    h('div', { class: 'two' }, losses.node, errors.node), more] };
}
