/* Filters the ledger of claims. The list is in the page; without this script it stays whole.
   The state is in the address: #source=...&verdict=...&kind=...&chapter=...&q=..., so that a filter can be shared. */
(function () {
  "use strict";

  const place = document.getElementById("ledger-filter");
  if (!place) return;

  const slug = text => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  const heading = section => section.querySelector("h2").firstChild.textContent.trim();
  const KEYS = { source: "Source", verdict: "Verdict", kind: "Kind", chapter: "Chapter" };
  const names = { source: {}, verdict: {}, kind: {}, chapter: {} }; // value in the address -> what a reader sees
  const sections = [...document.querySelectorAll(".ledger")].map(list => list.closest("section"));

  const rows = [...document.querySelectorAll(".ledger > ul > li")].map(item => {
    const section = item.closest("section");
    const read = name => item.querySelector(".c-" + name).textContent.trim();
    const verdict = read("verdict").replace(/(only under ).*/s, "$1a condition");
    const chapter = item.querySelector(".c-chapter").getAttribute("href").split("/").pop().replace(".html", "");
    const row = { item, section, source: section.id, verdict: slug(verdict), kind: slug(read("kind")), chapter };
    names.source[row.source] = heading(section);
    names.verdict[row.verdict] = verdict;
    names.kind[row.kind] = read("kind");
    names.chapter[chapter] = read("chapter");
    row.text = item.textContent.toLowerCase().replace(/\s+/g, " ");
    return row;
  });

  const state = { source: "", verdict: "", kind: "", chapter: "", q: "" };
  const controls = {};
  const form = document.createElement("form");
  form.className = "ledger-form";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", "Filter the claims");

  function label(text, control) {
    const node = document.createElement("label");
    node.append(text, control);
    form.append(node);
  }

  for (const key of Object.keys(KEYS)) {
    const select = (controls[key] = document.createElement("select"));
    select.name = key;
    select.append(new Option("any", ""));
    const values = Object.keys(names[key]);
    if (key === "chapter") values.sort();
    for (const value of values) select.append(new Option(names[key][value], value));
    label(KEYS[key], select);
  }
  const text = (controls.q = document.createElement("input"));
  text.type = "search";
  text.name = "q";
  text.autocomplete = "off";
  label("Text, every word of it", text);
  const reset = document.createElement("button");
  reset.type = "button";
  reset.textContent = "Show all";
  const status = document.createElement("p");
  status.setAttribute("role", "status");
  form.append(reset, status);
  place.replaceChildren(form);

  function matches(row, words, left) {
    return (
      Object.keys(KEYS).every(key => key === left || !state[key] || row[key] === state[key]) &&
      words.every(word => row.text.includes(word))
    );
  }

  function show() {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.item.hidden = !matches(row, words);
      shown += !row.item.hidden;
    }
    for (const section of sections) section.hidden = !section.querySelector(".ledger > ul > li:not([hidden])");
    for (const key of Object.keys(KEYS)) {
      // Each choice tells how many rows it would leave, given the other filters.
      const count = {};
      for (const row of rows) if (matches(row, words, key)) count[row[key]] = (count[row[key]] || 0) + 1;
      for (const option of controls[key].options)
        if (option.value) option.text = names[key][option.value] + " (" + (count[option.value] || 0) + ")";
      controls[key].value = state[key];
    }
    if (text.value !== state.q) text.value = state.q;
    status.textContent = shown + " of " + rows.length + " claims" + (shown ? "" : ": none matches");
  }

  function address() {
    const kept = Object.entries(state).filter(([, value]) => value);
    return kept.length ? "#" + new URLSearchParams(kept) : "";
  }

  function change() {
    for (const key of Object.keys(state)) state[key] = controls[key].value;
    history.replaceState(history.state, "", address() || location.pathname + location.search);
    show();
  }

  // Reads the filter from the address; a place in the page is no filter, and is shown if a filter hides it.
  function read(event) {
    const hash = location.hash.slice(1);
    if (hash.includes("=")) {
      const given = new URLSearchParams(hash);
      for (const key of Object.keys(state)) {
        const value = given.get(key) || "";
        state[key] = key === "q" || value in names[key] ? value : "";
      }
      show();
      form.scrollIntoView();
      if (event) controls.source.focus({ preventScroll: true });
      return;
    }
    const target = hash && document.getElementById(decodeURIComponent(hash));
    const hidden = target && target.closest("[hidden]");
    if (hidden || (event && !hash)) for (const key of Object.keys(state)) state[key] = "";
    show();
    if (hidden) target.scrollIntoView();
  }

  // A count becomes a link to the rows that it counts.
  for (const table of document.querySelectorAll(".ledger-counts table")) {
    const heads = [...table.querySelectorAll("thead th")].map(cell => slug(cell.textContent));
    for (const line of table.querySelectorAll("tbody tr")) {
      const cells = [...line.cells], verdict = slug(cells[0].textContent);
      if (verdict !== "all" && !(verdict in names.verdict)) continue;
      cells.slice(1).forEach((cell, index) => {
        const source = heads[index + 1], count = cell.textContent.trim();
        if (count === "0" || (source === "all" && verdict === "all")) return;
        const filter = { source: source === "all" ? "" : source, verdict: verdict === "all" ? "" : verdict };
        const link = document.createElement("a");
        link.href = "#" + new URLSearchParams(Object.entries(filter).filter(([, value]) => value));
        link.textContent = count;
        link.setAttribute("aria-label", count + ": " + cells[0].textContent.trim() + ", " + (names.source[source] || "all"));
        cell.replaceChildren(link);
      });
    }
  }

  form.addEventListener("input", change);
  form.addEventListener("submit", event => event.preventDefault());
  reset.addEventListener("click", () => {
    for (const key of Object.keys(state)) controls[key].value = "";
    change();
    text.focus();
  });
  addEventListener("hashchange", read);
  read();
})();
