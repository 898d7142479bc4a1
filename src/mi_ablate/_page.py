"""The fixed parts of a report page: its script, its style and its skeleton. `mi_ablate.report` fills them."""

DRAW = """
function draw(id, figure) {
  const box = document.getElementById(id), small = matchMedia("(max-width: 700px)");
  const both = (figure.layout || {}).meta || {};
  const fit = () => Plotly.relayout(box, structuredClone((small.matches ? both.narrow : both.wide) || {}));
  const bar = {displayModeBar: "hover", displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]]};
  Plotly.newPlot(box, figure.data, figure.layout, {responsive: true, ...bar}).then(fit);
  small.addEventListener("change", fit);
}
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #5c5c61; --line: #d9d9de; --paper: #ffffff;
  --shade: #f5f5f7; --link: #0b62b0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --soft: #a5a5ab; --line: #3a3a3f; --paper: #161618; --shade: #232326;
    --link: #6cb4ff; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; overflow-y: scroll; }
body { margin: 0 auto; max-width: 1120px; padding: 2rem 1.25rem 3rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 0.5rem; scroll-margin-top: 1rem; }
p { max-width: 46rem; margin: 0.6rem 0; overflow-wrap: break-word; }
a { color: var(--link); }
code { font: 0.88em ui-monospace, Menlo, Consolas, monospace; background: var(--shade);
  padding: 0.1em 0.3em; border-radius: 4px; overflow-wrap: anywhere; }
nav { background: var(--shade); border-radius: 8px; padding: 0.25rem 1rem; }
nav ol { padding-left: 1.3rem; margin: 0.6rem 0; }
figure { margin: 1.2rem 0; padding: 12px; background: #ffffff; color: #1d1d1f;
  border: 1px solid var(--line); border-radius: 8px;
  overflow-x: auto; color-scheme: only light; }
figcaption { font-weight: 600; padding: 4px 6px 8px; }
.attention { max-width: 760px; }
.attention h3 { font-size: 0.95rem; }
.attention h4 { font-size: 11px; line-height: 1.2; white-space: nowrap; }
.attention div[style*="flex: 0 0 8.33"] { min-width: 92px; }
.table { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.35rem 0.8rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; }
td.text { white-space: normal; min-width: 16rem; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line);
  color: var(--soft); font-size: 0.88rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1rem; margin: 0; }
dd { margin: 0; min-width: 0; }
@media (max-width: 700px) {
  body { padding: 1.25rem 0.75rem 2rem; }
  figure { padding: 6px; margin-inline: -0.25rem; }
}
@media print { figure, table { break-inside: avoid; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; \
worker-src blob:; base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
$scripts
</head>
<body>
<h1>$title</h1>
$contents
<main>
$sections
</main>
$footer
</body>
</html>
"""
