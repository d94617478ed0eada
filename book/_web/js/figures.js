/* What the interactive figures share: drawing, sliders, axes, a handle for fingers and keys, predictions.
 *
 * A figure is <figure class="nls-live" data-live="NAME"> with a .nls-stage, whose content is the text shown without
 * scripts. Each figure's own file calls nlsFigures.add(NAME, draw). Exact numbers are kept in data-value. */
"use strict";

window.nlsFigures = (() => {
  let count = 0; // of sliders, for their ids

  const fill = (node, attributes, parent, text) => {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const html = (parent, tag, attributes = {}, text) => fill(document.createElement(tag), attributes, parent, text);
  const svg = (parent, tag, attributes = {}, text) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, parent, text);

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const regime = (rate) => (Math.abs(rate) < 1e-12 ? "CE" : rate > 0 ? "LS" : "NLS");

  /* A number as the book prints it: a real minus sign, and no minus before zero. */
  const format = (value, digits = 2) => {
    if (!Number.isFinite(value)) return value < 0 ? "\u2212\u221e" : "\u221e";
    const text = value.toFixed(digits);
    return (Number(text) ? text : text.replace("-", "")).replace("-", "\u2212");
  };

  /* A labelled slider. `write` makes its text; set(value, max) moves it without calling `changed`. */
  const slider = (parent, label, { min, max, step, value, write = format }, changed) => {
    const id = `nls-slider-${++count}`;
    const row = html(parent, "div", { class: "nls-slider" });
    html(row, "label", { for: id }, label);
    const shown = html(row, "span", { class: "nls-reading", "aria-hidden": "true" });
    const input = html(row, "input", { type: "range", id, min, max, step, value });
    const set = (to, top) => {
      if (top !== undefined) input.max = top;
      input.value = to;
      shown.textContent = write(to);
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    set(value);
    input.addEventListener("input", () => {
      set(Number(input.value));
      changed(Number(input.value));
    });
    return { input, set };
  };

  /* Named numbers below a drawing; returns a function that writes one of them. */
  const readings = (parent, names) => {
    const list = html(parent, "dl", { class: "nls-readings" });
    const cells = {};
    for (const [key, name] of Object.entries(names)) {
      const pair = html(list, "div");
      html(pair, "dt", {}, name);
      cells[key] = html(pair, "dd", { "data-key": key });
    }
    return (key, value, digits = 3) => {
      cells[key].textContent = typeof value === "string" ? value : format(value, digits);
      cells[key].dataset.value = value;
    };
  };

  /* A drawing, its layer of shapes, and a way to describe it. With `handle` it holds something to move. */
  const drawing = (parent, width, height, label, movable = false) => {
    const root = svg(parent, "svg", { viewBox: `0 0 ${width} ${height}`, role: movable ? "group" : "img" });
    root.setAttribute("aria-label", label);
    return { root, layer: svg(root, "g", { "aria-hidden": "true" }) };
  };

  /* Axes in the box [left, top, right, bottom]; returns the scales. */
  const axes = (layer, [left, top, right, bottom], x, y) => {
    const sx = (v) => left + ((v - x.range[0]) / (x.range[1] - x.range[0])) * (right - left);
    const sy = (v) => bottom - ((v - y.range[0]) / (y.range[1] - y.range[0])) * (bottom - top);
    svg(layer, "path", { class: "nls-axis", d: `M${left} ${top}V${bottom}H${right}` });
    for (const v of x.ticks) {
      svg(layer, "path", { class: "nls-axis", d: `M${sx(v)} ${bottom}v4` });
      svg(layer, "text", { x: sx(v), y: bottom + 17, class: "nls-middle" }, format(v, x.digits ?? 0));
    }
    for (const v of y.ticks) {
      svg(layer, "path", { class: "nls-axis", d: `M${left} ${sy(v)}h-4` });
      svg(layer, "text", { x: left - 7, y: sy(v) + 4, class: "nls-end" }, format(v, y.digits ?? 0));
    }
    svg(layer, "text", { x: (left + right) / 2, y: bottom + 34, class: "nls-middle" }, x.label);
    svg(layer, "text", { x: left - 4, y: top - 9 }, y.label);
    return { sx, sy };
  };

  /* A point to drag, to send by a tap, or to move by the arrow keys (with Shift in larger steps). */
  const handle = (root, label, { moved, stepped }) => {
    const group = svg(root, "g", { class: "nls-handle", tabindex: 0, role: "slider", "aria-label": label });
    svg(group, "circle", { r: 22, class: "nls-reach" });
    svg(group, "circle", { r: 8, class: "nls-grip" });
    const find = (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(root.getScreenCTM().inverse());
      return [at.x, at.y];
    };
    let place = [0, 0];
    let held = null; // from the finger to the middle of the handle, while it is held
    group.addEventListener("pointerdown", (event) => {
      held = find(event).map((at, axis) => place[axis] - at);
      group.setPointerCapture(event.pointerId);
    });
    group.addEventListener("pointermove", (event) => held && moved(...find(event).map((at, axis) => at + held[axis])));
    for (const end of ["pointerup", "pointercancel"]) group.addEventListener(end, () => (held = null));
    root.addEventListener("click", (event) => group.contains(event.target) || moved(...find(event)));
    const arrows = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    group.addEventListener("keydown", (event) => {
      const arrow = arrows[event.key];
      if (!arrow) return;
      event.preventDefault(); // else the page scrolls
      const size = event.shiftKey ? 5 : 1;
      stepped(arrow[0] * size, arrow[1] * size);
    });
    return (x, y, { now, min, max, text }) => {
      place = [x, y];
      fill(group, {
        transform: `translate(${x} ${y})`,
        "aria-valuenow": now,
        "aria-valuemin": min,
        "aria-valuemax": max,
        "aria-valuetext": text,
      });
    };
  };

  /* Write a sentence that says what is seen; readers of screens hear it. */
  const sentence = (parent) => {
    const said = html(parent, "p", { class: "nls-said", role: "status" });
    return (text) => (said.textContent = text);
  };

  /* Keep the finding shut until the reader has committed to a prediction, and remember that. */
  const predict = (figure) => {
    const form = figure.querySelector(".nls-predict");
    const finding = figure.querySelector(".nls-finding");
    if (!form || !finding) return;
    const options = [...form.querySelectorAll("input")];
    const store = (write) => {
      try {
        const key = `nls-prediction-${figure.id}`;
        if (write === undefined) return localStorage.getItem(key);
        write === null ? localStorage.removeItem(key) : localStorage.setItem(key, write);
      } catch {
        // no storage in a private window: then the page forgets, and all else works
      }
      return null;
    };
    const button = html(form, "button", { type: "button" });
    const verdict = html(form, "p", { role: "status" });
    const waits = html(finding.parentElement, "p", { class: "nls-waits" }, "The finding opens with your prediction.");
    const show = (chosen) => {
      const open = chosen !== null;
      options.forEach((option) => {
        option.checked = open ? option.value === chosen : false;
        option.disabled = open;
      });
      finding.hidden = !open;
      waits.hidden = open;
      button.textContent = open ? "Predict again" : "Commit my prediction";
      const right = chosen === form.dataset.answer ? "As you predicted." : "It goes another way.";
      verdict.textContent = open ? `${chosen === "0" ? "Noted." : right} Try it below; the finding is at the end.` : "";
      figure.dataset.predicted = open ? chosen : "";
    };
    button.addEventListener("click", () => {
      const chosen = options.find((option) => option.checked);
      if (!finding.hidden) {
        store(null);
        show(null);
      } else if (chosen) {
        store(chosen.value);
        show(chosen.value);
      } else {
        verdict.textContent = "Choose one first.";
      }
    });
    const known = store();
    show(options.some((option) => option.value === known) ? known : null);
  };

  const add = (name, draw) => {
    for (const figure of document.querySelectorAll(`figure.nls-live[data-live="${name}"]`)) {
      const stage = figure.querySelector(".nls-stage");
      const text = [...stage.childNodes];
      try {
        draw(stage, figure);
        text.forEach((node) => node.remove());
        predict(figure);
      } catch (error) {
        stage.replaceChildren(...text); // the text says it all the same
        throw error;
      }
    }
  };

  return { add, axes, clamp, drawing, format, handle, html, readings, regime, sentence, slider, svg };
})();
