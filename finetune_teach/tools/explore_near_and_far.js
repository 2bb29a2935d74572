// The explorer of recorded runs: recipes at rates. What it is made of stands in engine/explorer.js.

const ROWS = `
.recipes { display: grid; grid-template-columns: minmax(0, 1.5fr) minmax(50px, 1fr) 46px;
  gap: 8px 14px; align-items: center }
.recipes label { align-items: start; line-height: 1.3; min-height: 28px; padding-top: 4px }
.recipes .swatch { margin-top: 7px }
.recipes small { display: block; font-size: 12.5px; color: var(--soft); font-weight: 400 }
.recipes .best { font-weight: 700 }
.recipes .value { text-align: right }
`;

function view(app) {
  const { recipes, regimes } = app.data, names = Object.keys(recipes);
  const here = o => regimes.find(regime => regime.name === o.regime);
  const picture = plot('Errors at each learning rate', 'Error of each recipe at each rate', 250);
  const big = h('p', { class: 'big', style: 'color: var(--colour)' });
  const words = h('p', { role: 'status' }), own = h('p', { class: 'soft' }), verdict = h('p');
  const about = h('p', { class: 'soft' });

  const rows = names.map((name, i) => {
    const input = h('input', { type: 'checkbox', value: name, 'data-control': 'recipes',
      onchange: () => app.move({ recipes: rows.filter(row => row.input.checked)
        .map(row => row.name) }) });
    const bar = h('i', { style: `--colour: ${hue(i)}` }), value = h('span', { class: 'value' });
    const label = h('label', { class: 'tick' }, input,
      h('span', { class: 'swatch', style: `--colour: ${hue(i)}` }),
      h('span', {}, name, h('small', {}, recipes[name])));
    return { name, input, bar, value, label,
      node: [label, h('div', { class: 'bar' }, bar), value] };
  });
  const table = app.control({
    node: h('div', { class: 'recipes', role: 'group', 'aria-label': 'Recipes' },
      rows.flatMap(row => row.node)),
    sync(state) { for (const row of rows) row.input.checked = state.recipes.includes(row.name); },
  });

  const at = (o, rates) => rates[nearest(rates, o.rate)];
  picture.handle({ label: 'Learning rate',
    drag: x => x && app.move({ rate: at({ rate: x }, here(app.state).rates) }),
    key(across, up) {
      const { rates } = here(app.state), i = nearest(rates, app.state.rate) + (across || up);
      app.move({ rate: rates[clamp(i, 0, rates.length - 1)] });
    } });

  function ranking(o) { // of those that are ticked and measured: at this rate, the best first
    const { rates, errors } = here(o), i = nearest(rates, o.rate);
    return names.filter(name => o.recipes.includes(name) && errors[name][i])
      .map(name => ({ name, errors: errors[name][i], error: mean(errors[name][i]) }))
      .sort((a, b) => a.error - b.error);
  }
  function bestOfAll(o) { // each at its own best rate
    const { rates, errors } = here(o);
    return names.filter(name => o.recipes.includes(name)).flatMap(name => rates.map((rate, i) =>
      errors[name][i] && { name, rate, error: mean(errors[name][i]) }).filter(Boolean))
      .sort((a, b) => a.error - b.error)[0];
  }
  app.ranking = ranking; // for tests
  app.bestOfAll = bestOfAll;

  function drawPlot(o, ranked) {
    const { rates, errors } = here(o), lines = [], rate_ = at(o, rates);
    names.forEach((name, k) => {
      if (!o.recipes.includes(name)) return;
      const some = rates.map((_, i) => i).filter(i => errors[name][i]);
      const x = some.map(i => rates[i]), colour = hue(k);
      for (const seed of errors[name][some[0]].keys()) {
        lines.push({ x, y: some.map(i => errors[name][i][seed]), colour, width: 0, dots: 3.2,
          opacity: 0.5 });
      }
      lines.push({ x, y: some.map(i => mean(errors[name][i])), colour });
    });
    picture.draw({ lines, y: { min: 0, max: 1, format: percent },
      x: { min: rates[0] / 1.25, max: rates.at(-1) * 1.25, log: true, format: rate, at: rates,
        title: 'the highest learning rate (a dot is a seed)' },
      handles: [{ x: rate_, now: Math.log10(rate_), text: ranked[0] ? `${rate(rate_)}: best is `
        + `${ranked[0].name}, ${percent(ranked[0].error)} errors` : rate(rate_) }] });
  }

  function draw() {
    const o = app.state, asked = o.guess === null, regime = here(o);
    answer.hidden = asked;
    const ranked = ranking(o), [first, second] = ranked, at_ = rate(at(o, regime.rates));
    about.textContent = regime.about;
    drawPlot(o, ranked);
    for (const row of rows) {
      const found = ranked.find(({ name }) => name === row.name);
      row.bar.style.transform = `scaleX(${found ? found.error.toFixed(3) : 0})`;
      row.value.textContent = found ? percent(found.error) : '–';
      row.label.classList.toggle('best', found === first && Boolean(first));
    }
    big.textContent = first ? first.name : 'Tick a recipe';
    big.style.setProperty('--colour', first ? hue(names.indexOf(first.name)) : 'inherit');
    const n = first?.errors.length;
    const wins = (a, b) => a.errors.filter((error, i) => error < b.errors[i]).length;
    words.textContent = !first ? '' : `makes the fewest errors at ${at_}: `
      + `${percent(first.error)} of ${regime.n_valid} ${regime.what} (mean of ${n} seeds).`
      + (!second ? '' : wins(first, second) === n ? ` It beats ${second.name} with every seed.`
        : ` ${second.name} is about as good: it is better with ${wins(second, first)} of ${n}.`);
    const best = bestOfAll(o);
    own.textContent = best ? `Each at its own best rate: ${best.name} is best, `
      + `${percent(best.error)} errors at ${rate(best.rate)}.` : '';
    if (asked) return;
    const { errors, rates } = regimes[0], said = mean(errors[o.guess][nearest(rates, 1e-3)]);
    const [top] = ranking({ regime: regimes[0].name, recipes: names, rate: 1e-3 });
    verdict.textContent = `You said ${o.guess}. Near, at 1e-3, ` + (o.guess === top.name
      ? `it is best: ${percent(said)} errors.` : `it makes ${percent(said)} errors; best is `
      + `${top.name} with ${percent(top.error)}.`) + ' Now look at other rates, and far.';
  }

  const answer = h('div', { class: 'stack' }, verdict,
    choice(app, 'regime', { label: 'Pictures', of: regimes.map(({ name }) =>
      ({ value: name, label: name })) }), about,
    picture.node, h('div', {}, big, words, own), table);
  const intro = question(app, 'guess', { ask: 'Which one makes the fewest errors?',
    of: names.map(value => ({ value, label: value })),
    then() { answer.querySelector('[data-control=regime]').focus({ preventScroll: true }); } });
  const meanings = h('ul', { style: 'margin: 0; padding-left: 20px' }, names.map(name =>
    h('li', {}, h('b', { class: 'name' }, name), `: ${recipes[name]}`)));
  const start = h('div', { class: 'stack', style: 'gap: 10px' }, h('p', {}, app.data.about),
    meanings, intro);
  app.control({ node: start, sync(state) { start.hidden = state.guess !== null; } });
  return { draw, nodes: [h('style', {}, ROWS), start, answer] };
}
