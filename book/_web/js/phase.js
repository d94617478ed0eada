/* Chapter 4: where a data set lies in the plane of noise and clean rate, and which rate it asks for. */
"use strict";

nlsFigures.add("phase", (stage, figure) => {
  const { axes, clamp, drawing, format, handle, html, readings, regime, sentence, slider, svg } = nlsFigures;
  const state = { classes: 10, noise: 0.3, clean: 0.1 };
  const low = -0.5, top = 0.95, most = 0.95;
  const lost = () => (state.classes * state.noise) / (state.classes - 1); // c
  const tidy = (value) => (Math.abs(value) < 1e-12 ? 0 : value);

  const { root, layer } = drawing(stage, 380, 330, "The plane of noise rate and clean rate", true);
  const field = svg(layer, "g");
  const { sx, sy } = axes(layer, [52, 30, 366, 280], { range: [0, most], ticks: [0, 0.2, 0.4, 0.6, 0.8], digits: 1, label: "noise rate \u03b5" },
    { range: [low, 1], ticks: [-0.5, 0, 0.5, 1], digits: 1, label: "best rate on clean labels, r*" });
  const region = (points, name) =>
    svg(field, "path", { class: name, d: "M" + points.map(([x, y]) => `${sx(x)} ${sy(y)}`).join("L") + "Z" });
  const word = (x, y, text) => svg(field, "text", { x: sx(x), y: sy(y), class: "nls-middle nls-word" }, text);

  const plane = () => {
    const end = Math.min(most, (state.classes - 1) / state.classes); // where c is one
    field.replaceChildren();
    const edge = (end * state.classes) / (state.classes - 1); // c at the right end
    region([[0, 0], [0, 1], [end, 1], [end, edge]], "nls-zone-ls");
    region([[0, 0], [end, edge], [end, 0]], "nls-zone-nls");
    region([[0, 0], [end, 0], [end, low], [0, low]], "nls-zone-none");
    if (end < most) region([[end, low], [end, 1], [most, 1], [most, low]], "nls-zone-void");
    /* A rate r is best on the line r* = c + r (1 - c), and all these lines meet at c = 1, r* = 1. */
    for (const rate of [0.5, 0, -0.5, -1, -3]) {
      const at = (noise) => 1 - (1 - rate) * (1 - (noise * state.classes) / (state.classes - 1));
      const start = rate < low ? ((1 - (1 - low) / (1 - rate)) * (state.classes - 1)) / state.classes : 0;
      svg(field, "path", { class: rate ? "nls-contour" : "nls-zero", d: `M${sx(start)} ${sy(at(start))}L${sx(end)} ${sy(at(end))}` });
      const label = rate < 0 ? ((1 - 0.75 / (1 - rate)) * (state.classes - 1)) / state.classes : 0;
      if (rate < 0 && sx(label) < 350) svg(field, "text", { x: sx(label), y: sy(0.25) + 4, class: "nls-middle nls-tag" }, format(rate, rate % 1 ? 1 : 0));
    }
    word(0.28 * end, 0.8, "LS");
    word(0.16 * end, 0.04, "NLS");
    word(0.5 * end, -0.25, "no minimum");
  };

  const draw = () => {
    const c = lost();
    const told = c < 1 - 1e-6;
    const best = told ? tidy((state.clean - c) / (1 - c)) : NaN;
    const edge = told ? tidy(-c / (1 - c)) : NaN;
    const feasible = !told ? "no rate" : state.clean > 0 ? "yes" : state.clean < 0 ? "no" : "on the edge";
    stage.dataset.regime = told ? regime(best) : "";
    show("lost", c);
    show("best", told ? best : "none");
    show("edge", told ? edge : "none");
    show("turn", clamp(state.clean, 0, 1) * ((state.classes - 1) / state.classes));
    show("feasible", feasible);
    const sign = { LS: "positive", CE: "zero", NLS: "negative" }[told ? regime(best) : "CE"];
    const why = { yes: "the population risk has a minimum there.", no: "where a clean label is certain, the risk has no minimum there.",
      "on the edge": "where a clean label is certain, no finite logits reach the least risk." };
    say(told ? `The best rate is ${format(best)}, ${sign}: ${why[feasible]}`
      : "Labels as noisy as this tell nothing or mislead, and no rate up to one undoes that.");
    put(sx(state.noise), sy(state.clean), { now: state.noise.toFixed(3), min: 0, max: most,
      text: `noise rate ${format(state.noise)}, clean rate ${format(state.clean)}` });
  };
  const place = (values) => {
    Object.assign(state, values);
    state.noise = clamp(state.noise, 0, most);
    state.clean = tidy(clamp(state.clean, low, top));
    sliders.classes.set(state.classes);
    sliders.noise.set(state.noise);
    sliders.clean.set(state.clean);
    if ("classes" in values) plane();
    draw();
  };
  const rounded = (value) => Math.round(value * 100) / 100;
  const put = handle(root, "your data set: drag it; right and left move its noise rate, up and down its clean rate", {
    moved: (x, y) => place({ noise: rounded(((x - 52) / 314) * most), clean: rounded(low + ((280 - y) / 250) * (1 - low)) }),
    stepped: (dx, dy) => place({ noise: rounded(state.noise + 0.01 * dx), clean: rounded(state.clean + 0.01 * dy) }),
  });
  const sliders = {
    classes: slider(stage, "classes K", { min: 2, max: 100, step: 1, value: state.classes, write: String }, (v) => place({ classes: v })),
    noise: slider(stage, "noise rate \u03b5", { min: 0, max: most, step: 0.01, value: state.noise }, (v) => place({ noise: v })),
    clean: slider(stage, "clean rate r*", { min: low, max: top, step: 0.01, value: state.clean }, (v) => place({ clean: v })),
  };
  const buttons = html(stage, "p", { class: "nls-buttons" });
  for (const [name, classes, noise] of JSON.parse(figure.dataset.sets)) {
    html(buttons, "button", { type: "button" }, name).addEventListener("click", () => place({ classes, noise }));
  }
  const say = sentence(stage);
  const show = readings(stage, { best: "best rate", feasible: "has a minimum", edge: "lowest with a minimum", lost: "weight of the noise, c", turn: "turns negative at \u03b5" });
  place({ classes: state.classes });
});
