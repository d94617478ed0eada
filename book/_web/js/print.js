// On paper a page is light, whatever it is on the screen.
"use strict";

(() => {
  const page = document.documentElement;
  let shown = null;
  addEventListener("beforeprint", () => {
    shown ??= page.dataset.theme;
    page.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    if (shown !== null) page.dataset.theme = shown;
    shown = null;
  });
})();
