/* Chapter 10: networks on a plane, trained by the chapter for each noise rate, rate and number of labels. */
"use strict";

nlsFigures.add("boundary", (stage, figure) => {
  const { clamp, drawing, format, handle, html, readings, regime, sentence, slider, svg } = nlsFigures;
  const data = JSON.parse(document.getElementById(figure.dataset.source).textContent);
  const { side, reach, limit } = data;
  /* A map holds log-odds of class 1, a byte a point, 127 for none; the first coordinate changes slowest. */
  const decode = (text) => Array.from(atob(text), (letter) => ((letter.charCodeAt(0) - 127) * limit) / 127);
  const truth = decode(data.truth);
  const state = { size: data.sizes.length - 1, noise: data.noise.length - 1, rate: 0, x: 0, y: 1.1 };

  const [left, top, width] = [12, 12, 340];
  const { root, layer } = drawing(stage, 364, 364, "The plane of the data set, with a point that you can move", true);
  const px = (v) => left + ((v + reach) / (2 * reach)) * width;
  const py = (v) => top + ((reach - v) / (2 * reach)) * width;
  const gap = width / (side - 1);
  const frame = svg(layer, "svg", { x: left, y: top, width, height: width, viewBox: `${left} ${top} ${width} ${width}` });
  const ground = svg(frame, "image", { class: "nls-ground", x: left - gap / 2, y: top - gap / 2,
    width: width + gap, height: width + gap, preserveAspectRatio: "none" });
  const dots = [svg(frame, "path", { class: "nls-class-0" }), svg(frame, "path", { class: "nls-class-1" })];
  const rule = svg(frame, "path", { class: "nls-rule" });
  const halo = svg(frame, "path", { class: "nls-halo" });
  const line = svg(frame, "path", { class: "nls-line" });
  svg(layer, "rect", { class: "nls-frame", x: left, y: top, width, height: width });

  /* The line of even odds, by linear interpolation in each cell of the grid. */
  const contour = (odds) => {
    let path = "";
    for (let i = 0; i + 1 < side; i++) {
      for (let j = 0; j + 1 < side; j++) {
        const spots = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]];
        const cuts = [];
        spots.forEach(([a, b], k) => {
          const [c, d] = spots[(k + 1) % 4];
          const [from, to] = [odds[a * side + b], odds[c * side + d]];
          if (from > 0 === to > 0) return;
          const part = from / (from - to);
          cuts.push([left + (a + part * (c - a)) * gap, top + width - (b + part * (d - b)) * gap]);
        });
        for (let k = 0; k + 1 < cuts.length; k += 2)
          path += `M${cuts[k].map((v) => v.toFixed(1)).join(" ")}L${cuts[k + 1].map((v) => v.toFixed(1)).join(" ")}`;
      }
    }
    return path;
  };
  const shade = (odds) => {
    const canvas = fillCanvas(document.createElement("canvas"), odds);
    ground.setAttribute("href", canvas.toDataURL());
  };
  const fillCanvas = (canvas, odds) => {
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    const image = context.createImageData(side, side);
    odds.forEach((value, n) => {
      const sure = 2 / (1 + Math.exp(-Math.abs(value))) - 1;
      const [i, j] = [Math.floor(n / side), n % side];
      image.data[4 * ((side - 1 - j) * side + i) + 3] = 115 * sure; // black, more or less transparent
    });
    context.putImageData(image, 0, 0);
    return canvas;
  };
  /* Log-odds between the points of the grid, bilinear. */
  const oddsAt = (odds, x, y) => {
    const [u, v] = [x, y].map((value) => clamp(((value + reach) / (2 * reach)) * (side - 1), 0, side - 1));
    const [i, j] = [u, v].map((value) => Math.min(Math.floor(value), side - 2));
    const [a, b] = [u - i, v - j];
    const at = (di, dj) => odds[(i + di) * side + j + dj];
    return (1 - a) * ((1 - b) * at(0, 0) + b * at(0, 1)) + a * ((1 - b) * at(1, 0) + b * at(1, 1));
  };
  const probability = (odds) => 1 / (1 + Math.exp(-odds));
  const rates = () => data.members.map(([e, r], n) => [e, r, n]).filter(([e]) => e === data.noise[state.noise]).map(([, r, n]) => [r, n]).sort((a, b) => a[0] - b[0]);
  rule.setAttribute("d", contour(truth));

  let odds; // of the network that is shown
  const draw = () => {
    const noise = data.noise[state.noise];
    const [rate, member] = rates()[state.rate];
    const strength = (1 - rate) * (1 - 2 * noise);
    odds = decode(data.maps[state.size][member]);
    stage.dataset.regime = regime(rate);
    shade(odds);
    const way = contour(odds);
    line.setAttribute("d", way);
    halo.setAttribute("d", way);
    const shown = ["", ""];
    data.x.forEach((x, n) => {
      const label = Number(data.labels[state.noise][n]);
      shown[label] += label ? `M${px(x)} ${py(data.y[n]) - 3}l3 5h-6z` : `M${px(x) - 2.4} ${py(data.y[n])}a2.4 2.4 0 1 0 4.8 0a2.4 2.4 0 1 0 -4.8 0z`;
    });
    dots.forEach((dot, k) => dot.setAttribute("d", shown[k]));
    stage.dataset.rate = rate;
    show("strength", strength, 2);
    ["disagreement", "accuracy", "confidence"].forEach((key, k) => show(key, data.scores[state.size][member][k]));
    const where = strength > 1 + 1e-9 ? "below the exact rate" : strength > 1 - 1e-9 ? "at the exact rate, the edge" : "above the exact rate";
    say(`${data.sizes[state.size].toLocaleString("en")} labels, noise ${format(noise, 1)}, r = ${format(rate)}: s = ${format(strength)}, ${where}. ` +
      `The network differs from Bayes' rule on ${format(100 * data.scores[state.size][member][0], 1)} % of the points.`);
    probe();
  };
  const probe = () => {
    const here = probability(oddsAt(odds, state.x, state.y));
    show("here", here);
    show("true", probability(oddsAt(truth, state.x, state.y)));
    put(px(state.x), py(state.y), { now: state.x.toFixed(2), min: -reach, max: reach,
      text: `at ${format(state.x)}, ${format(state.y)} the network gives class 1 ${format(here)}` });
  };
  const go = (x, y) => {
    state.x = clamp(x, -reach, reach);
    state.y = clamp(y, -reach, reach);
    probe();
  };
  const put = handle(root, "point of the plane: drag it, or move it by the arrow keys", {
    moved: (x, y) => go(((x - left) / width) * 2 * reach - reach, reach - ((y - top) / width) * 2 * reach),
    stepped: (dx, dy) => go(state.x + 0.1 * dx, state.y + 0.1 * dy),
  });
  const list = (label, values, name, write) =>
    slider(stage, label, { min: 0, max: values.length - 1, step: 1, value: state[name], write: (n) => write(values[n]) }, (n) => {
      state[name] = n;
      draw();
    });
  slider(stage, "noise rate", { min: 0, max: data.noise.length - 1, step: 1, value: state.noise, write: (n) => format(data.noise[n], 1) }, (n) => {
    const before = rates()[state.rate][0];
    state.noise = n;
    const near = rates().map(([r]) => Math.abs(r - before));
    state.rate = near.indexOf(Math.min(...near)); // the same rate where it was trained, else the nearest
    knob.set(state.rate, near.length - 1);
    draw();
  });
  state.rate = rates().findIndex(([r]) => r === 0);
  const knob = slider(stage, "smooth rate r", { min: 0, max: rates().length - 1, step: 1, value: state.rate, write: (n) => format(rates()[n][0]) }, (n) => {
    state.rate = n;
    draw();
  });
  list("labels", data.sizes, "size", (size) => size.toLocaleString("en"));
  const say = sentence(stage);
  const show = readings(stage, { strength: "strength s", confidence: "mean confidence", disagreement: "differs from Bayes' rule", accuracy: "accuracy", here: "class 1 at the point", true: "truth at the point" });
  draw();
});
