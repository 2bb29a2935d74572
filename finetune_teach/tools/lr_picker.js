// The rate picker. What it is made of stands in engine/explorer.js.

const places = value => Math.abs(value) < 1000 ? value.toPrecision(3) : value.toExponential(2);

function view(app) {
  const { curve, grid, before, metric, epochs, low, high, ranges } = app.data;
  const share = metric === 'error_rate', after = `${epochs} epoch${epochs === 1 ? '' : 's'}`;
  const number = share ? percent : places, named = share ? 'error' : metric;
  const shown = o => o.many ? `slice(${rate(o.low)}, ${rate(o.lr)})` : rate(o.lr);
  const keyOf = t => String(t.lr);
  const ended = t => /^stopped/.test(t.problem) ? 'stopped' : 'broke off';
  let tries = [], shownAll = false, typing = 0;

  // What a rate came to: as the kernel trained it, or as it was recorded

  function recorded(wanted) {
    const k = nearest(grid.rates, wanted);
    const lr = grid.rates[k];
    return { lr, at: lr, text: rate(lr), x: grid.x, lines: grid.losses[k],
      values: grid.errors[k], recorded: true };
  }
  function keep(found) { // the newest of four; each keeps its place, and its colour
    const same = tries.findIndex(t => keyOf(t) === keyOf(found));
    const oldest = tries.reduce((a, t, i) => t.age < tries[a].age ? i : a, 0);
    const place = same >= 0 ? same : tries.length < 4 ? tries.length : oldest;
    tries[place] = { ...found, age: 1 + Math.max(0, ...tries.map(t => t.age)) };
  }
  const newest = list => list.reduce((a, t) => t.age > (a?.age ?? 0) ? t : a, null);

  function take(changes) { // with a kernel, Python trains; without one, look it up
    app.move(changes);
    clearTimeout(typing);
    if (!app.model && grid && app.state.stage === 'free' && !app.state.many) {
      typing = setTimeout(() => { keep(recorded(app.state.lr)); app.show(); }, 150);
    }
  }
  const inside = lr => clamp(twoDigits(lr), low, high);

  // The finder's curve, with the marker

  const finder = plot('Loss, while the rate grows from step to step', 'The curve of the '
    + 'learning-rate finder: loss against learning rate', 230);
  const y = lr => clamp(curve.smoothed[nearest(curve.lrs, lr)] ?? curve.top, curve.bottom,
    curve.top);
  const drag = name => x => x && take({ [name]: name === 'low' ? Math.min(inside(x), app.state.lr)
    : inside(x), ...(name === 'lr' && app.state.low > x ? { low: inside(x) } : {}) });
  const step = name => (across, up) => drag(name)(app.state[name] * 10 ** ((across || up) / 20));
  finder.handle({ label: 'Learning rate', drag: drag('lr'), key: step('lr'), colour: hue(1) });
  finder.handle({ label: 'Rate of the first layers', drag: drag('low'), key: step('low'),
    colour: hue(4) });

  function drawFinder(o) {
    const free = o.stage === 'free';
    const x = { min: low / 1.05, max: high * 1.05, log: true, format: rate };
    const rules = curve.rules.filter(() => free)
      .map(r => ({ x: [r.lr], y: [y(r.lr)], dots: 4, colour: hue(0) }));
    const regions = curve.diverged ? [{ from: curve.diverged, to: high, label: 'too high' }] : [];
    finder.draw({ x: { ...x, title: 'learning rate' }, regions,
      y: { min: curve.bottom, max: curve.top, format: v => String(Number(v.toPrecision(3))) },
      bands: o.many ? [{ x: [o.low, o.lr], low: [curve.bottom, curve.bottom],
        high: [curve.top, curve.top], colour: hue(4) }] : [],
      lines: [{ x: curve.lrs, y: curve.losses, colour: 'var(--soft)', opacity: 0.35, width: 1 },
        { x: curve.lrs, y: curve.smoothed, colour: hue(0), width: 2.6 }, ...rules],
      handles: [{ x: o.lr, y: y(o.lr), text: rate(o.lr), now: Math.log10(o.lr) },
        o.many ? { x: o.low, y: y(o.low), text: rate(o.low), now: Math.log10(o.low) } : null] });
  }

  // Below: the last four, and where they lie among all that were tried

  const losses = plot('Training loss of the last four', 'Training loss against epochs', 200);
  const map = plot(`${share ? 'Error' : metric} after ${after}`, `${named} against the rate`, 200);
  const big = h('span', { class: 'big' }), words = h('p', { role: 'status', class: 'soft' });

  function drawTries(list, last) {
    const xs = { min: 0, max: epochs, title: 'epochs' };
    losses.draw({ x: xs, y: { min: 0, max: app.data.loss * 1.5 },
      lines: list.flatMap((t, i) => (t.lines ?? []).map((line, k) => ({ x: t.x, y: line,
        colour: hue(i), label: k ? '' : t.text + (t.problem ? ` (${ended(t)})` : ''),
        width: t === last ? 3 : 1.6, opacity: k ? 0.3 : 1 }))) });
    const all = shownAll && grid ? grid : null;
    const values = [before, ...list.flatMap(t => t.values), ...(all ? all.errors.flat() : [])]
      .filter(v => v !== null);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const gap = (most - least) * 0.08 || 1;
    const tried = list.map(t => t.at), ends = grid ? grid.rates : [1e-6, 1];
    const [from, to] = [Math.min(...ends, ...tried) / 1.3, Math.max(...ends, ...tried) * 1.3];
    map.draw({ x: { min: from, max: to, log: true, format: rate, title: 'learning rate' }, left: 48,
      y: share ? { min: 0, max: 1, format: percent }
        : { min: least - gap, max: most + gap, format: places },
      bands: all ? [{ x: all.rates, low: all.errors.map(e => Math.min(...e)), colour: 'var(--soft)',
        high: all.errors.map(e => Math.max(...e)) }] : [],
      lines: [...(all ? [{ x: all.rates, y: all.errors.map(mean), colour: 'var(--soft)',
        width: 1.4 }] : []), { x: [from, to], y: [before, before], colour: 'var(--soft)', width: 1,
        dash: '4 4', label: 'before' },
      ...list.map((t, i) => ({ x: t.values.map(() => t.at), y: t.values, colour: hue(i),
        dots: t === last ? 6 : 4, width: 0 })).filter(line => line.y[0] !== null)] });
  }

  // The game: a rate, a guess, the answer; then what the rules would have had

  const guess = slider(app, 'guess', { label: share ? 'How many of 100 new pictures will it get '
    + `wrong after ${after}?` : '', min: 0, max: 100, format: String });
  const game = h('div', { class: 'stack' }, h('div', { class: 'grid' }, guess,
    h('div', { class: 'row' }, h('button', { type: 'button', class: 'main', 'data-control': 'train',
      onclick: () => take({ stage: 'free' }) }, 'Train with it'))));
  const verdict = h('p', { class: 'name' });
  const rules = curve.rules.map(r => h('button', { type: 'button', 'data-control': r.name,
    title: r.about, onclick: () => take({ lr: r.lr, many: false }) }, r.name));
  const compared = h('div', { class: 'row' }, h('span', { class: 'name' },
    curve.rules.length ? 'The rules say' : curve.problem), rules);

  const judged = (said, is) => `You said ${percent(said)}. ${Math.abs(said - is) < 0.06
    ? 'Well guessed!' : said > is ? 'It is better than you thought.' : 'It is worse.'} `
    + 'Now try other rates, and those of the rules. Where does it get worse?';

  function drawWords(o, last) {
    curve.rules.forEach((r, i) => {
      const known = grid ? mean(recorded(r.lr).values) : null;
      rules[i].textContent = `${r.name} ${rate(r.lr)}`
        + (known === null ? '' : ` \u2192 ${number(known)}`);
    });
    big.textContent = !last ? ''
      : last.values[0] === null ? ended(last) : number(mean(last.values));
    const said = app.data.game && last && keyOf(last) === String(o.first);
    verdict.hidden = !said;
    if (said) verdict.textContent = judged(o.guess / 100, mean(last.values));
    const what = !last ? '' : last.problem ? `${last.text}: ${last.problem}`
      : `${named} after ${after} at ${last.text}`
      + (last.recorded ? `: recorded runs of ${last.values.length} seeds, `
        + `${last.values.map(number).join(', ')}` : '');
    words.textContent = app.model ? app.news.status || what
      : o.many ? 'Run this cell to train with a rate for each layer group.'
      : !grid ? `${what ? `${what}. ` : ''}Run this cell to train a copy at any rate.` : what;
  }

  // Other controls

  const field = h('input', { type: 'text', inputmode: 'decimal', 'data-control': 'number',
    'aria-label': 'Learning rate as a number', onchange: () => {
      const lr = Number(field.value.trim().replace(',', '.'));
      if (!(lr >= low * 0.999 && lr <= high * 1.001)) {
        return app.say(`${field.value}: type a rate between ${rate(low)} and ${rate(high)}.`);
      }
      return take({ lr: clamp(lr, low, high), low: Math.min(app.state.low, lr) });
    } });
  app.control({ sync({ lr }) {
    if (field.latest !== lr) field.value = exact(field.latest = lr);
  } });
  const exact = lr => twoDigits(lr) === lr ? rate(lr) : String(lr);
  const many = toggle(app, 'many', 'slice(low, high): smaller for the first layers');
  const code = copyable('Copy the call');
  const bar = h('div', { class: 'bar', style: 'width: 140px; height: 10px' }, h('i'));
  const start = h('button', { type: 'button', class: 'main', onclick: () => app.ask('train') },
    'Train a copy');
  const stop = h('button', { type: 'button', onclick: () => app.ask('stop') }, 'Stop');
  const kernel = h('div', { class: 'row' }, start, stop, bar);
  const all = h('input', { type: 'checkbox', 'data-control': 'all',
    onchange: () => { shownAll = all.checked; app.show(); } });
  const reveal = h('label', { class: 'tick' }, all, 'Show what every rate came to');

  function draw() {
    const o = app.state, free = o.stage === 'free';
    const list = app.model ? app.news.previews ?? [] : tries;
    const last = newest(list);
    if (free && app.data.game) o.first ??= app.model ? o.lr : recorded(o.lr).lr;
    drawFinder(o);
    for (const [element, hidden] of [[game, free], [results, !free], [compared, !free],
      [kernel, !app.model || app.data.quick || !free], [reveal, !grid], [many, !ranges || !free],
      [big, !last]]) element.hidden = hidden;
    code.show(`learn.fit_one_cycle(${epochs}, ${shown(o)})`);
    bar.firstChild.style.transform = `scaleX(${app.news.progress ?? 0})`;
    stop.disabled = !app.news.running;
    if (free) { drawTries(list, last); drawWords(o, last); }
  }
  const results = h('div', { class: 'stack' }, h('div', { class: 'row' }, big, words), verdict,
    h('div', { class: 'two' }, losses.node, map.node), reveal);
  for (const t of app.data.previews) keep(t);
  if (!tries.length && grid && app.state.stage === 'free') keep(recorded(app.state.lr));
  return { draw, nodes: [app.data.question ? h('p', {}, app.data.question) : null, finder.node,
    h('div', { class: 'row' }, h('label', { class: 'row', style: 'gap: 8px' },
      h('span', { class: 'name' }, 'Learning rate'), field), many), compared, game, kernel, results,
    code.node] };
}
