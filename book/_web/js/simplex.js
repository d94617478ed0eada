/* Chapter 3: a clean posterior over three classes, what noise makes of it, what a rate asks for, and the entropies. */
"use strict";

nlsFigures.add("simplex", (stage) => {
  const { clamp, drawing, format, handle, html, regime, sentence, slider, svg } = nlsFigures;
  const state = { clean: [0.7, 0.2, 0.1], noise: 0.2, rate: 0.4 };
  const exact = (noise) => (0 - 1.5 * noise) / (1 - 1.5 * noise); // c = 3 noise / 2
  const towards = (posterior, strength) => posterior.map((p) => 1 / 3 + strength * (p - 1 / 3));
  const entropy = (posterior) =>
    posterior.some((p) => p < -1e-9) ? NaN : -posterior.reduce((sum, p) => sum + (p > 1e-12 ? p * Math.log(p) : 0), 0);

  /* Corners of the triangle: A on top, B on the left, C on the right; and back from a place to its posterior. */
  const centre = [190, 180], side = 240, high = (side * Math.sqrt(3)) / 2;
  const corners = [[190, centre[1] - (2 / 3) * high], [190 - side / 2, centre[1] + high / 3], [190 + side / 2, centre[1] + high / 3]];
  const place = (p) => [0, 1].map((axis) => corners.reduce((sum, corner, k) => sum + p[k] * corner[axis], 0));
  const inside = (p) => {
    const kept = p.map((value) => Math.max(value, 0));
    const sum = kept.reduce((a, b) => a + b);
    return kept.map((value) => value / sum);
  };
  const path = (points) => "M" + points.map((point) => point.map((v) => v.toFixed(2)).join(" ")).join("L");

  const { root, layer } = drawing(stage, 380, 285, "Posteriors on the triangle of three classes", true);
  svg(layer, "path", { class: "nls-field", d: path(corners) + "Z" });
  for (const level of [0.3, 0.6, 0.9, 1.05]) {
    let ring = []; // along each ray from the centre the entropy falls
    for (let turn = 0; turn <= 180; turn++) {
      const angle = (turn * Math.PI) / 90;
      const ray = [0, 1, 2].map((k) => Math.cos(angle + (2 * Math.PI * k) / 3));
      let low = 0, top = -1 / (3 * Math.min(...ray));
      if (entropy(towards(ray.map((v) => v + 1 / 3), top)) > level) {
        if (ring.length) svg(layer, "path", { class: "nls-contour", d: path(ring) });
        ring = [];
        continue;
      }
      for (let i = 0; i < 30; i++) {
        const middle = (low + top) / 2;
        if (entropy(towards(ray.map((v) => v + 1 / 3), middle)) > level) low = middle;
        else top = middle;
      }
      ring.push(place(ray.map((v) => 1 / 3 + low * v)));
    }
    if (ring.length) svg(layer, "path", { class: "nls-contour", d: path(ring) });
  }
  ["A", "B", "C"].forEach((name, k) =>
    svg(layer, "text", { x: corners[k][0] + [0, -14, 14][k], y: corners[k][1] + [-9, 6, 6][k], class: "nls-middle" }, name));
  const line = svg(layer, "path", { class: "nls-guide" });
  const noisy = svg(layer, "rect", { class: "nls-noisy", width: 13, height: 13, x: -6.5, y: -6.5 });
  const asked = svg(layer, "path", { class: "nls-mark", d: "M0 -9L9 7H-9Z" });

  const table = html(html(stage, "div", { class: "nls-table" }), "table");
  html(table, "caption", {}, "The three posteriors and their entropies");
  const head = html(html(table, "thead"), "tr");
  ["", "A", "B", "C", "nats"].forEach((name) => html(head, name ? "th" : "td", name ? { scope: "col" } : {}, name));
  const body = html(table, "tbody");
  const cells = {};
  for (const [key, name] of [["clean", "\u25cb clean"], ["noisy", "\u25a0 noisy"], ["asked", "\u25b2 asked for"]]) {
    const row = html(body, "tr");
    html(row, "th", { scope: "row" }, name);
    cells[key] = ["A", "B", "C", "entropy"].map((part) => html(row, "td", { "data-key": `${key}-${part}` }));
  }

  const draw = () => {
    const kept = 1 - 1.5 * state.noise;
    const strength = (1 - state.rate) * kept;
    const all = { clean: state.clean, noisy: towards(state.clean, kept), asked: towards(state.clean, strength) };
    for (const [key, posterior] of Object.entries(all)) {
      [...posterior, entropy(posterior)].forEach((value, k) => {
        cells[key][k].textContent = Number.isNaN(value) ? "none" : format(value, 3);
        cells[key][k].dataset.value = value;
      });
    }
    stage.dataset.regime = regime(state.rate);
    stage.dataset.strength = strength;
    stage.dataset.exact = exact(state.noise);
    noisy.setAttribute("transform", `translate(${place(all.noisy).join(" ")})`);
    /* What leaves the picture is drawn hollow at its edge, on the same ray. */
    let [far, gone] = [strength, false];
    const seen = ([x, y]) => x > 10 && x < 370 && y > 12 && y < 275;
    while (!seen(place(towards(state.clean, far)))) [far, gone] = [far - 0.01, true];
    asked.setAttribute("transform", `translate(${place(towards(state.clean, far)).join(" ")})`);
    asked.classList.toggle("nls-hollow", gone);
    line.setAttribute("d", path([centre, place(towards(state.clean, Math.max(1, far)))]));
    const [x, y] = place(state.clean);
    put(x, y, { now: state.clean[0].toFixed(3), min: 0, max: 1,
      text: state.clean.map((p, k) => `${"ABC"[k]} ${format(p)}`).join(", ") });
    const lost = entropy(all.asked);
    const where = Number.isNaN(lost)
      ? `outside the triangle${gone ? " and off the picture" : ""}: an entry is negative, and the loss has no minimum`
      : Math.abs(strength - 1) < 1e-9 ? "back on the clean posterior"
        : `${strength > 1 ? "beyond" : "short of"} the clean posterior, with ${format(lost, 3)} nats`;
    say(`Noise leaves ${format(kept, 2)} of the way from the centre, the rate makes it ` +
      `${format(strength, 2)}: what the network is asked for is ${where}.`);
  };
  const moveTo = (posterior) => {
    state.clean = inside(posterior);
    draw();
  };
  const put = handle(root, "clean posterior: drag it; up and down move the share of A, right and left that of C", {
    moved: (x, y) => {
      const top = (corners[1][1] - y) / high;
      const right = (x - corners[1][0]) / side - top / 2;
      moveTo([top, 1 - top - right, right]);
    },
    stepped: (dx, dy) => {
      const [a, b, c] = state.clean;
      const up = clamp(a + 0.02 * dy, 0, 1);
      const rest = a < 1 ? (1 - up) / (1 - a) : 0;
      const over = clamp(c * rest + (a < 1 ? 0 : (1 - up) / 2) + 0.02 * dx, 0, 1 - up);
      moveTo([up, 1 - up - over, over]);
    },
  });
  const set = (name) => (value) => {
    state[name] = value;
    draw();
  };
  slider(stage, "noise rate \u03b5", { min: 0, max: 0.5, step: 0.01, value: state.noise }, set("noise"));
  const rates = slider(stage, "smooth rate r", { min: -3, max: 1, step: 0.02, value: state.rate }, set("rate"));
  const button = html(stage, "button", { type: "button" }, "Take the exact rate");
  button.addEventListener("click", () => {
    state.rate = exact(state.noise) + 0; // the slider has steps, the rate has none
    rates.set(state.rate);
    draw();
  });
  const say = sentence(stage);
  stage.append(table.parentElement);
  draw();
});
