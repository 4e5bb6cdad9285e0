// Runs before the page is drawn, so that a chosen theme does not flash.
"use strict";
(() => {
  try {
    const theme = localStorage.getItem("sdexport.theme");
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage is switched off: the system's theme is used.
  }
})();
