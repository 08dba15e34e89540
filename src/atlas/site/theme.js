// Before the first paint: the theme that the reader chose, if any.
try {
  const chosen = localStorage.getItem("atlas-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {}
