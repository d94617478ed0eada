// What the theme and the tables of pandas leave out for readers who use a keyboard or a screen reader.
"use strict";

(() => {
  // A part that scrolls sideways must be reachable by keyboard, and only such a part.
  const scrolling = ".bd-article :is(table, figure, .output, div.math, mjx-container[display], pre)";
  const reach = () => {
    for (const part of document.querySelectorAll(scrolling)) {
      const scrolls = part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).overflowX !== "visible";
      if (scrolls && !part.hasAttribute("tabindex")) part.dataset.reach = part.tabIndex = 0;
      if (!scrolls && part.dataset.reach) { part.removeAttribute("tabindex"); delete part.dataset.reach; }
    }
  };

  // The corner above the row names of a table heads nothing.
  for (const head of document.querySelectorAll(".bd-article th"))
    if (!head.textContent.trim() && !head.querySelector("img, input")) head.replaceWith(document.createElement("td"));

  // Entries of the bibliography have a role that is deprecated, in a list that wants items.
  for (const entry of document.querySelectorAll(".citation[role='doc-biblioentry']")) entry.setAttribute("role", "listitem");

  // The arrows that open a part of the sidebar have no text.
  for (const arrow of document.querySelectorAll(".bd-sidebar-primary summary")) {
    const page = arrow.closest("li").querySelector("a");
    if (!arrow.textContent.trim()) arrow.setAttribute("aria-label", `Pages below ${page ? page.textContent.trim() : "this"}`);
  }

  reach();
  addEventListener("resize", reach);
  addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(reach));
})();
