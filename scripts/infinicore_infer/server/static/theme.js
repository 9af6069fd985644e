// Runs before the first paint, so that the page does not flash in the wrong colours. No module for that reason.
(() => {
  let theme = "system";
  try {
    theme = JSON.parse(localStorage.getItem("infinicore_infer.settings") ?? "{}").theme ?? theme;
  } catch {
    // Storage is forbidden or damaged.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
