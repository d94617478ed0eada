/* Chapter 1: the target over K classes, and the loss of one example against its margin, at a rate r. */
"use strict";

nlsFigures.add("rate", (stage) => {
  const { axes, drawing, format, readings, regime, sentence, slider, svg } = nlsFigures;
  const state = { rate: 0.4, classes: 10, margin: 3 };

  /* Logits (s, 0, ..., 0), the label on the first: the margin is m = s (K - 1) / K. */
  const look = ({ rate, classes }) => {
    const own = 1 - rate + rate / classes;
    const other = rate / classes;
    const logit = (margin) => (margin * classes) / (classes - 1);
    const lse = (s) => Math.max(s, 0) + Math.log(Math.exp(Math.min(s, 0)) + (classes - 1) * Math.exp(-Math.max(s, 0)));
    const loss = (margin) => lse(logit(margin)) - own * logit(margin);
    const slope = (margin) => ((Math.exp(logit(margin) - lse(logit(margin))) - own) * classes) / (classes - 1);
    const best = rate > 0 ? (Math.log(own / other) * (classes - 1)) / classes : NaN;
    const least = regime(rate) === "CE" ? 0 : rate > 0 ? loss(best) : -Infinity;
    return { own, other, loss, slope, best, least };
  };

  const panels = nlsFigures.html(stage, "div", { class: "nls-panels" });
  const left = drawing(panels, 360, 300, "The target over the classes");
  const right = drawing(panels, 360, 300, "The loss against the margin");
  const bars = svg(left.layer, "g");
  const up = axes(left.layer, [44, 30, 350, 262], { range: [0, 1], ticks: [], label: "classes, the label first" },
    { range: [-1.1, 3.1], ticks: [-1, 0, 1, 2, 3], label: "target" });
  for (const edge of [0, 1]) svg(left.layer, "path", { class: "nls-guide", d: `M44 ${up.sy(edge)}H350` });
  const box = [44, 30, 350, 250];
  const { sx, sy } = axes(right.layer, box, { range: [-3, 9], ticks: [-3, 0, 3, 6, 9], label: "margin m" },
    { range: [-6, 8], ticks: [-6, -3, 0, 3, 6], label: "loss" });
  const view = svg(right.layer, "svg", { x: box[0], y: box[1], width: box[2] - box[0], height: box[3] - box[1],
    viewBox: `${box[0]} ${box[1]} ${box[2] - box[0]} ${box[3] - box[1]}` }); // cuts off what leaves the axes
  svg(view, "path", { class: "nls-guide", d: `M${box[0]} ${sy(0)}H${box[2]}` });
  const curve = svg(view, "path", { class: "nls-line" });
  const least = svg(view, "rect", { class: "nls-mark", width: 11, height: 11 });
  const here = svg(view, "circle", { class: "nls-dot", r: 6 });
  svg(right.layer, "text", { x: 346, y: 44, class: "nls-end" }, "square: the least loss");

  const draw = () => {
    const now = look(state);
    stage.dataset.regime = regime(state.rate);
    const wide = 306 / state.classes;
    bars.replaceChildren();
    for (let k = 0; k < state.classes; k++) {
      const value = k ? now.other : now.own;
      svg(bars, "rect", { class: "nls-bar", x: 44 + k * wide + 0.1 * wide, width: 0.8 * wide,
        y: up.sy(Math.max(value, 0)), height: Math.abs(up.sy(value) - up.sy(0)) });
    }
    let path = "";
    for (let i = 0; i <= 240; i++) path += `${i ? "L" : "M"}${sx(-3 + i / 20)} ${sy(now.loss(-3 + i / 20)).toFixed(2)}`;
    curve.setAttribute("d", path);
    here.setAttribute("cx", sx(state.margin));
    here.setAttribute("cy", sy(now.loss(state.margin)));
    least.style.display = state.rate > 0 ? "" : "none";
    if (state.rate > 0) least.setAttribute("transform", `translate(${sx(now.best) - 5.5} ${sy(now.least) - 5.5})`);
    show("own", now.own);
    show("other", now.other);
    show("loss", now.loss(state.margin));
    show("slope", now.slope(state.margin));
    show("least", now.least);
    show("best", state.rate > 0 ? now.best : "at no margin");
    const rest = { LS: `bounded below, least at margin ${format(now.best)}, where the output is the target.`,
      CE: "bounded below by 0, which no margin reaches.",
      NLS: `not bounded below: far right each unit of margin takes off ${format(-state.rate)} more.` };
    say(`r = ${format(state.rate)}: the loss is ${rest[regime(state.rate)]}`);
    right.root.setAttribute("aria-label", `The loss against the margin at r = ${format(state.rate)}, with ` +
      `${state.classes} classes: ${rest[regime(state.rate)]}`);
    left.root.setAttribute("aria-label", `The target: ${format(now.own, 3)} for the label, ` +
      `${format(now.other, 3)} for each other class.`);
  };
  const set = (name) => (value) => {
    state[name] = value;
    draw();
  };
  slider(stage, "smooth rate r", { min: -2, max: 1, step: 0.02, value: state.rate }, set("rate"));
  slider(stage, "classes K", { min: 2, max: 20, step: 1, value: state.classes, write: String }, set("classes"));
  slider(stage, "margin m of the dot", { min: -3, max: 9, step: 0.1, value: state.margin }, set("margin"));
  const say = sentence(stage);
  const show = readings(stage, { own: "target of the label", other: "of each other class", loss: "loss at the dot",
    slope: "slope at the dot", least: "least loss", best: "least at margin" });
  draw();
});
