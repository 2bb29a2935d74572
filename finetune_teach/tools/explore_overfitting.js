// The explorer of overfitting. What it is made of stands in engine/explorer.js.

const GUESSES = {
  number: ['fewer', 'about as many', 'more'],
  sure: ['less sure', 'as sure', 'surer'],
};

function whatHappened(from, to, n) { // of the wrong answers of two epochs: places in GUESSES
  const error = from.wrong / n;
  const chance = 2 * Math.sqrt(error * (1 - error) / n); // two standard errors
  const change = (to.wrong - from.wrong) / n, surer = to.sure - from.sure;
  return { number: Math.abs(change) < chance ? 1 : change > 0 ? 2 : 0, chance: chance * n,
    sure: Math.abs(surer) < 0.02 ? 1 : surer > 0 ? 2 : 0 };
}

function stairs(counts) { // the outline of a histogram from 0 to 1
  const x = [0], y = [0];
  counts.forEach((count, i) => {
    x.push(i / counts.length, (i + 1) / counts.length);
    y.push(count, count);
  });
  return { x: [...x, 1], y: [...y, 0] };
}

function series(epochs, key, shift = 0) { // what is no number is left out
  const known = epochs.filter(epoch => epoch[key] !== null);
  return { x: known.map(epoch => epoch.position - shift), y: known.map(epoch => epoch[key]) };
}

function view(app) {
  const { epochs, classes, pictures, phases, n, turn } = app.data, total = epochs.length;
  const at = number => epochs[number - 1], end = at(total).position;
  const rises = turn < total; // the validation loss, after `turn`
  const limit = rises ? turn : 1; // as far as one may look before one has guessed
  const losses = plot('Loss', 'Training and validation loss of each epoch', 190);
  const rights = plot('Accuracy', 'Accuracy of each epoch', 190);
  const [wrongBins, rightBins] = ['wrong', 'right'].map(kind =>
    plot(`How sure it was of the ${kind} ones`, `Confidence of the ${kind} answers`, 150));
  const question = h('div', { class: 'stack', style: 'gap: 8px' });
  const finding = h('h3'), details = h('p', { class: 'soft' });
  const verdict = h('div', {}, finding, details);
  const status = h('p', { role: 'status', class: 'name' });
  const numbers = ['wrong', 'sure', 'certain'].map(() => ({ big: h('span', { class: 'big' }),
    words: h('span', { class: 'soft' }) }));
  const heading = h('p', { class: 'name' });
  const faces = Array.from({ length: app.data.shown }, () => {
    const img = h('img', { alt: '' }), text = h('figcaption');
    return { img, text, node: h('figure', {}, img, text) };
  });

  // Where one is in the run

  let seen = 1, known = total === 1, playing = 0;
  const guessed = o => Boolean(o.number && o.sure);
  const whole = o => known || guessed(o) || o.epoch > limit;
  function go(number) {
    playing++;
    app.move({ epoch: clamp(number, 1, whole(app.state) ? total : limit) });
  }
  function drag(x) {
    if (x === undefined) return;
    const far = epoch => Math.abs(epoch.position - x);
    go(1 + epochs.reduce((best, epoch, i) => far(epoch) < far(epochs[best]) ? i : best, 0));
  }
  const key = (across, up) => go(app.state.epoch + (across || up));
  losses.handle({ label: 'Epoch', drag, key, colour: hue(1) });
  rights.handle({ label: 'Epoch, on the accuracy', drag, key, colour: hue(2) });
  function play() { // the run, up to its end
    const mine = ++playing, from = app.state.epoch, begun = performance.now();
    if (matchMedia('(prefers-reduced-motion: reduce)').matches) return app.move({ epoch: total });
    const step = now => {
      if (mine !== playing) return;
      const way = clamp((now - begun) / 2500, 0, 1);
      app.move({ epoch: Math.round(from + (total - from) * way) });
      if (way < 1) requestAnimationFrame(step);
    };
    return requestAnimationFrame(step);
  }

  // What is asked, and what one is told then

  const share = value => value === null ? '–' : percent(value);
  const about = ({ wrong, sure }) => `${wrong} of ${n} answers are wrong, and of these the model `
    + `is ${share(sure)} sure on average`;
  const ask = rises
    ? `After ${turn} epoch${turn > 1 ? 's' : ''}, ${about(at(turn))}. From there on the validation `
      + `loss climbs, from ${at(turn).valid.toFixed(2)} to ${at(total).valid.toFixed(2)}. What `
      + 'will have become of the wrong answers at the end?'
    : `After the first epoch, ${about(at(1))}. What will have become of the wrong answers after `
      + `epoch ${total}?`;
  const choices = [['number', 'How many?'], ['sure', 'How sure of them?']].map(([name, label]) =>
    choice(app, name, { label, of: GUESSES[name].map(value => ({ value, label: value })) }));
  const [many, much] = [0, 1].map(() => h('strong', { class: 'value' }));
  question.append(h('h3', {}, 'Guess first'), h('p', {}, ask), ...choices, h('p', { class: 'soft' },
    'Your guess: ', many, ' wrong answers, and the model is ', much, ' of them.'));
  function tell(o) {
    const [from, to] = [at(limit), at(total)], found = whatHappened(from, to, n);
    finding.textContent = `${['Fewer', 'About as many', 'More'][found.number]} wrong answers, and `
      + `the model is ${GUESSES.sure[found.sure]} of them`;
    const told = guessed(o) ? `You said: ${o.number}, and ${o.sure}. ` : '';
    const why = found.number === 1 && from.wrong !== to.wrong
      ? ` (a difference below ${Math.round(found.chance)} may be chance)` : '';
    const cost = rises && found.sure === 2 ? ' A wrong answer costs more, the surer it is: so the '
      + 'loss climbs.' : '';
    details.textContent = `${told}After ${limit} of ${total} epochs: ${from.wrong} wrong, `
      + `${share(from.sure)} sure. `
      + `At the end: ${to.wrong} wrong${why}, ${share(to.sure)} sure.${cost}`;
  }

  function drawCurves(o, open) {
    const place = at(o.epoch), past = epochs.slice(0, o.epoch);
    const reached = epochs.slice(0, seen);
    const axis = { min: 0, max: end, title: 'epochs' };
    const regions = open || limit === total ? []
      : [{ from: at(limit).position, to: end, label: end > 8 ? 'what comes here?' : '?' }];
    const rules = phases.map(phase => ({ at: phase.start, label: phase.name }));
    const lowest = open && rises ? [{ at: at(turn).position, label: 'lowest loss' }] : [];
    const line = (name, label, colour, shift) => [
      { ...series(open ? epochs : reached, name, shift), colour, opacity: 0.3 },
      { ...series(past, name, shift), label, colour, dots: o.epoch === 1 ? 3 : 0 }];
    const text = `after ${o.epoch} of ${total} epochs`;
    const y = value => value ?? 0;
    losses.draw({ x: axis, y: { min: 0, max: app.data.top }, regions,
      rules: [...rules, ...lowest],
      lines: [...line('train', 'training', hue(0), 0.5), ...line('valid', 'validation', hue(1), 0)],
      handles: [{ x: place.position, y: Math.min(y(place.valid), app.data.top), now: o.epoch,
        text: `${text}, validation loss ${y(place.valid).toFixed(2)}` }] });
    rights.draw({ x: axis, y: { min: 0, max: 1, format: percent }, regions, rules,
      lines: line('accuracy', 'validation', hue(2), 0),
      handles: [{ x: place.position, y: place.accuracy, now: o.epoch,
        text: `${text}, accuracy ${percent(place.accuracy)}` }] });
  }

  const tallest = (list, k) => Math.max(1, ...list.flatMap(epoch => epoch.counts[k]));
  const fixed = [tallest(epochs, 0), tallest(epochs.slice(turn - 1), 1)];
  function drawBins(where, k, counts, colour) {
    const { x, y } = stairs(counts), low = y.map(() => 0);
    const top = nice(Math.max(fixed[k], ...counts) * 1.02);
    where.draw({ x: { min: 0, max: 1, format: percent, title: 'sure of its answer' },
      y: { min: 0, max: top }, bands: [0, 1].map(() => ({ x, low, high: y, colour })),
      lines: [{ x, y, colour }] });
  }

  const called = number => h('strong', {}, classes[number].split('_').flatMap((part, i) =>
    i ? ['_', h('wbr'), part] : [part])); // a long name may break there
  function showFaces(mistakes) {
    heading.textContent = mistakes.length ? 'The wrong answers it was surest of'
      : 'No wrong answers';
    faces.forEach(({ img, text, node }, i) => {
      node.hidden = i >= mistakes.length;
      if (node.hidden) return;
      const [picture, answer, label, sure] = mistakes[i];
      const words = `said ${classes[answer]}, ${percent(sure)} sure; is ${classes[label]}`;
      if (img.alt === words) return;
      img.alt = words;
      img.src = pictures[picture];
      text.replaceChildren('said ', called(answer), `, ${percent(sure)} sure`, h('br'), 'is ',
        called(label));
    });
  }

  let before = null; // whether the guess had been made when this was drawn last
  function draw() {
    const o = app.state, place = at(o.epoch), open = whole(o);
    known = open;
    seen = Math.max(seen, o.epoch);
    drawCurves(o, open);
    drawBins(wrongBins, 1, place.counts[1], hue(1));
    drawBins(rightBins, 0, place.counts[0], hue(2));
    showFaces(place.mistakes);
    const certain = place.counts[1].at(-1);
    const said = [[place.wrong, `wrong answers of ${n}`], [share(place.sure),
      'sure of them, on average'], [certain, 'of them more than 90\u202f% sure']];
    said.forEach(([big, words], i) => {
      numbers[i].big.textContent = big;
      numbers[i].words.textContent = words;
    });
    const loss = place.valid === null ? 'no number' : place.valid.toFixed(2);
    status.textContent = `After ${o.epoch} of ${total} epochs: validation loss ${loss}, `
      + `accuracy ${percent(place.accuracy)}`;
    question.hidden = open;
    [many.textContent, much.textContent] = [o.number || '…', o.sure || '…'];
    verdict.hidden = !open || total === 1;
    if (!verdict.hidden) tell(o);
    const now = before === false && guessed(o);
    before = guessed(o);
    if (now) play(); // which draws again
  }
  return { draw, nodes: [question, verdict,
    h('div', { class: 'stack', style: 'gap: 4px' }, status,
      h('div', { class: 'grid', style: 'grid-template-columns: repeat(3, 1fr); gap: 8px 16px' },
        numbers.map(({ big, words }) => h('div', {}, h('div', {}, big), words)))),
    h('div', { class: 'two' }, losses.node, rights.node),
    h('div', { class: 'two' }, wrongBins.node, rightBins.node),
    h('div', { class: 'stack', style: 'gap: 8px' }, heading,
      h('div', { class: 'faces' }, faces.map(face => face.node)))] };
}
