/* Predictions that a reader commits before the answer opens, remembered in this browser and sent nowhere.
 *
 * A question is an admonition whose title begins with "Predict", or a paragraph that begins with a bold "Predict."
 * What follows it, up to the next heading, is its answer. It stays covered until the reader commits a prediction or
 * chooses to look. Without this script, and on paper, everything is open. A deep link, the search of the browser and
 * that of the book open what they lead to. */
"use strict";

(() => {
  const KEPT = "nls-prediction"; // what the book keeps begins with this; figures.js keeps "nls-prediction-<figure>"
  const SWITCH = KEPT + ":ask";
  const page = decodeURIComponent(location.pathname.split("/").pop().replace(/\.html$/, "")) || "index";

  /* What is kept; where the browser refuses, until the page is left. */
  const memory = new Map();
  let refused = false;
  const keep = (use, otherwise) => {
    if (!refused) {
      try {
        return use(localStorage);
      } catch {
        refused = true;
      }
    }
    return otherwise();
  };
  const read = (key) => memory.get(key) ?? keep((kept) => kept.getItem(key), () => null);
  const write = (key, text) => keep((kept) => kept.setItem(key, text), () => memory.set(key, text));
  const forget = (key) => {
    memory.delete(key);
    keep((kept) => kept.removeItem(key), () => null);
  };
  const keys = () =>
    [...memory.keys(), ...keep((kept) => Object.keys(kept), () => [])].filter(
      (key) => key.startsWith(KEPT) && key !== SWITCH,
    );
  keep((kept) => {
    kept.setItem(KEPT + ":try", "");
    kept.removeItem(KEPT + ":try");
  }, () => null);

  const make = (parent, tag, attributes = {}, text = "") => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };

  const asks = (node) => {
    if (node.closest("figure")) return false;
    if (node.tagName !== "P") return /^Predict/.test(node.querySelector(".admonition-title")?.textContent ?? "");
    const first = node.firstChild;
    return first?.nodeName === "STRONG" && first.textContent === "Predict." && node.nextSibling !== null;
  };

  const found = [...document.querySelectorAll("article .admonition, article p")].filter(asks);
  if (!found.length) return;

  let asking = read(SWITCH) !== "no";
  const counts = {}; // questions of each section
  const questions = found.map((node, n) => {
    const section = node.closest("section")?.id ?? "";
    counts[section] = (counts[section] ?? 0) + 1;
    return { node, n, key: `${KEPT}:${page}#${section}.${counts[section]}`, opened: false };
  });

  /* Move what follows a question, up to the next heading, into an element that can be covered. */
  const wrap = (question) => {
    const answer = make(null, "div", { class: "nls-answer", id: `nls-answer-${question.n + 1}`, tabindex: -1 });
    const heading = (node) => /^(SECTION|H[1-6])$/.test(node.nodeName);
    while (question.node.nextSibling && !heading(question.node.nextSibling)) answer.append(question.node.nextSibling);
    question.node.after(answer);
    question.answer = answer;
  };

  const build = (question) => {
    const { node, answer, n } = question;
    const box = make(null, "div", { class: "nls-ask" });
    node.tagName === "P" ? node.after(box) : node.append(box);
    const form = make(box, "form");
    const field = `nls-ask-${n + 1}`;
    make(form, "label", { for: field }, "Your prediction");
    const area = make(form, "textarea", { id: field, rows: 2, maxlength: 600, "aria-describedby": field + "-notice" });
    const row = make(form, "p");
    make(row, "button", { type: "submit" }, "Commit");
    const notice = make(row, "span", { id: field + "-notice" });
    const said = make(form, "p", { role: "status" });
    const made = make(box, "div", { class: "nls-made", tabindex: -1 });
    const echo = make(null, "p", { class: "nls-echo" });
    [...answer.children].find((part) => /^Read it\./.test(part.textContent))?.before(echo);
    const look = make(null, "p", { class: "nls-cover" });
    answer.before(look);
    const open = make(look, "button", { type: "button", "aria-expanded": "false", "aria-controls": answer.id });
    open.textContent = "Show the answer";

    const tell = (place, text) => {
      place.replaceChildren();
      make(place, "strong", {}, "You predicted: ");
      make(place, "span", { class: "nls-own" }, text);
    };
    const again = (name) => {
      const button = make(made, "button", { type: "button" }, name);
      button.addEventListener("click", () => {
        const text = known().text ?? "";
        forget(question.key);
        question.opened = false;
        show();
        area.value = text;
        area.focus();
      });
    };
    const known = () => {
      try {
        return JSON.parse(read(question.key)) ?? {};
      } catch {
        return {}; // not what this script has written
      }
    };
    const show = (question.show = () => {
      const { text, looked } = known();
      const closed = asking && text === undefined && !looked && !question.opened;
      form.hidden = !closed;
      look.hidden = !closed;
      closed ? answer.setAttribute("hidden", "until-found") : answer.removeAttribute("hidden");
      notice.textContent = refused ? "Kept until you leave this page; not sent." : "Kept in this browser; not sent.";
      said.textContent = "";
      made.replaceChildren();
      echo.hidden = text === undefined;
      box.hidden = !closed && text === undefined && !asking;
      if (closed) return;
      if (text !== undefined) {
        tell(make(made, "p"), text);
        tell(echo, text);
        if (asking) again("Predict again");
      } else if (asking) {
        make(made, "p", {}, "The answer is open without a prediction.");
        again("Cover it and predict");
      }
    });

    const commit = () => {
      const text = area.value.trim();
      if (!text) {
        said.textContent = "Write something first; a word is enough.";
        area.focus();
        return;
      }
      write(question.key, JSON.stringify({ text }));
      change();
      made.focus({ preventScroll: true });
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      commit();
    });
    area.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      commit();
    });
    open.addEventListener("click", () => {
      write(question.key, JSON.stringify({ looked: true }));
      change();
      answer.focus({ preventScroll: true });
    });
    answer.addEventListener("beforematch", () => reveal(answer)); // the search of the browser, or a deep link
  };

  /* Open all that covers a node, for this visit. */
  const reveal = (node) => {
    const inside = questions.filter(({ answer }) => answer.contains(node) && answer.hasAttribute("hidden"));
    for (const question of inside) {
      question.opened = true;
      question.show();
    }
    return inside.length > 0;
  };
  const follow = (hash) => {
    const target = hash.length > 1 && document.getElementById(decodeURIComponent(hash.slice(1)));
    if (target && reveal(target)) target.scrollIntoView();
  };

  /* The switch, the notice and the ways to forget, before the first section. */
  const settings = () => {
    const first = document.querySelector("article section > section");
    const panel = make(null, "div", { class: "nls-settings", role: "group", "aria-label": "Predictions" });
    first ? first.before(panel) : found[0].before(panel);
    const many = found.length === 1 ? "one answer" : `${found.length} answers`;
    const about = make(panel, "p", {}, `This page asks for a prediction before it opens ${many}. `);
    const where = make(about, "span");
    const label = make(panel, "label");
    const box = make(label, "input", { type: "checkbox" });
    label.append(" Do not ask me: show every answer");
    box.checked = !asking;
    const row = make(panel, "p");
    const here = make(row, "button", { type: "button" });
    const all = make(row, "button", { type: "button" });
    const said = make(panel, "p", { role: "status" });
    const figures = [...document.querySelectorAll("figure.nls-live[id]")];
    const ours = (key) =>
      key.startsWith(`${KEPT}:${page}#`) || figures.some((figure) => key === `${KEPT}-${figure.id}`);
    const clear = (which, what) => {
      for (const figure of figures) if (figure.dataset.predicted) figure.querySelector(".nls-predict button").click();
      keys().filter(which).forEach(forget);
      for (const question of questions) question.opened = false;
      for (const area of document.querySelectorAll(".nls-ask textarea")) area.value = "";
      change();
      said.textContent = `${what} forgotten.`;
      box.focus({ preventScroll: true }); // the button that was pressed may have gone
    };
    here.addEventListener("click", () => clear(ours, "What this page kept is"));
    all.addEventListener("click", () => clear(() => true, "What the whole book kept is"));
    box.addEventListener("change", () => {
      asking = !box.checked;
      asking ? forget(SWITCH) : write(SWITCH, "no");
      change();
    });
    return () => {
      document.documentElement.classList.toggle("nls-unasked", !asking); // the findings of the figures follow
      where.textContent = refused
        ? "This browser keeps nothing here, so what you commit lasts until you leave the page; nothing is sent."
        : "What you commit is kept in this browser only; nothing is sent.";
      for (const [button, name, count] of [
        [here, "Forget what this page kept", keys().filter(ours).length],
        [all, "Forget what the whole book kept", keys().length],
      ]) {
        button.textContent = `${name} (${count})`;
        button.hidden = !count;
      }
      said.textContent = "";
    };
  };

  const change = () => {
    for (const question of questions) question.show();
    update();
  };
  [...questions].reverse().forEach(wrap); // so that an answer holds the questions that follow within its section
  questions.forEach(build);
  const update = settings();
  change();

  follow(location.hash);
  addEventListener("hashchange", () => follow(location.hash));
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href*='#']");
    if (link && link.pathname === location.pathname && link.hash === location.hash) follow(link.hash);
  });
  // The search of the book marks its hits with a timer of 10 ms, which may end after the page has loaded.
  const hits = () => document.querySelectorAll(".nls-answer .highlighted").forEach(reveal);
  addEventListener("load", () => setTimeout(hits, 100));
})();
