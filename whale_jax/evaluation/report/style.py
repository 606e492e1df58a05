"""The report's style sheet and script."""

SCRIPT = """
(() => {
  const films = [...document.querySelectorAll('video')];
  const pause = document.getElementById('pause'), slow = document.getElementById('slow');
  if (!films.length) return;
  document.querySelector('.player').hidden = false;
  const seen = new Set();
  let paused = matchMedia('(prefers-reduced-motion: reduce)').matches;
  const update = () => {
    films.forEach(film => !paused && seen.has(film) ? film.play().catch(() => {}) : film.pause());
    pause.textContent = paused ? 'Play films' : 'Pause films';
  };
  const watch = new IntersectionObserver(entries => {
    entries.forEach(entry => entry.isIntersecting ? seen.add(entry.target) : seen.delete(entry.target));
    update();
  });
  films.forEach(film => watch.observe(film));
  pause.onclick = () => { paused = !paused; update(); };
  slow.onclick = () => {
    const half = slow.getAttribute('aria-pressed') !== 'true';
    slow.setAttribute('aria-pressed', half);
    films.forEach(film => film.playbackRate = half ? 0.5 : 1);
  };
  update();
})();
"""

STYLE = """
:root {
  color-scheme: light dark;
  --sans: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace;
  --ground: #fdfdfb; --panel: #f3f4f1; --ink: #1a1e23; --muted: #59616b; --rule: #dcdfe2;
  --model: #0b5fa5; --repeat: #737a84; --wrong: #c2480f; --reconstruction: #0b7d60; --held-out: #c2480f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --panel: #1c2026; --ink: #e5e7ea; --muted: #9ea6b0; --rule: #30363d;
    --model: #67b3f5; --repeat: #a0a7b0; --wrong: #f2925a; --reconstruction: #4cc6a0; --held-out: #f2925a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 var(--sans); }
main, header, footer { max-width: 1136px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 48px; }
h1 { margin: 0; font-size: clamp(1.65rem, 1.2rem + 2vw, 2.35rem); line-height: 1.15; font-weight: 650;
  letter-spacing: -0.018em; text-wrap: balance; }
h2 { margin: 0 0 6px; font-size: 1.4rem; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; }
h3 { margin: 36px 0 4px; font-size: 1.02rem; font-weight: 650; }
p { margin: 0 0 12px; max-width: 72ch; }
a { color: var(--model); text-underline-offset: 3px; text-decoration-thickness: 1px; }
a:focus-visible, button:focus-visible, summary:focus-visible, [tabindex]:focus-visible {
  outline: 2px solid var(--model); outline-offset: 2px; }
code { font: 0.9em var(--mono); }
.eyebrow { margin: 0 0 8px; color: var(--muted); font-size: 0.85rem; }
.lede { margin: 16px 0 0; font-size: 1.09rem; max-width: 74ch; text-wrap: pretty; }
.note { color: var(--muted); font-size: 0.92rem; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 20px; font-size: 0.92rem; }
section { margin-top: 40px; padding-top: 28px; border-top: 1px solid var(--rule); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 20px 32px;
  margin: 28px 0 0; }
.tiles div { display: flex; flex-direction: column-reverse; justify-content: flex-end;
  border-top: 2px solid var(--ink); padding-top: 8px; }
.tiles dt { color: var(--muted); font-size: 0.85rem; line-height: 1.35; }
.tiles dd { margin: 2px 0 0; font-size: 1.6rem; font-weight: 600; letter-spacing: -0.01em; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.player { display: flex; gap: 8px; margin: 4px 0 16px; }
.player[hidden] { display: none; }
button { font: 0.88rem var(--sans); color: var(--ink); background: var(--panel);
  border: 1px solid var(--rule); border-radius: 6px; padding: 5px 12px; cursor: pointer; }
button:hover { border-color: var(--muted); }
button[aria-pressed=true] { background: var(--ink); color: var(--ground); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.films { width: 100%; table-layout: fixed; }
.films th { text-align: left; overflow-wrap: anywhere; }
.films thead th { font-size: 0.9rem; font-weight: 600; padding: 0 0 8px 16px; }
.films thead th:first-child { width: 136px; padding-left: 0; }
.films tbody th { vertical-align: top; font-weight: 650; padding: 0 0 24px; }
.films small { display: block; margin-top: 4px; font-weight: 400; color: var(--muted); line-height: 1.45; }
.films td { vertical-align: top; padding: 0 0 24px 16px; }
figure { margin: 0; }
.film video, .film img { display: block; width: 100%; height: auto; border-radius: 5px; background: #101216; }
.film figcaption { margin-top: 6px; font-size: 0.84rem; line-height: 1.45; color: var(--muted); }
.film figcaption b { color: var(--ink); font-weight: 600; }
.policy { display: none; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 12px 0 4px; padding: 0; list-style: none;
  font-size: 0.88rem; }
.legend li { display: flex; align-items: center; gap: 8px; }
.swatch { width: 30px; height: 8px; flex: none; }
.swatch path, .chart path { fill: none; stroke: currentColor; stroke-linejoin: round; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr));
  gap: 20px 28px; margin: 10px 0 8px; }
.charts figcaption { font-size: 0.9rem; font-weight: 600; margin-bottom: 2px; overflow-wrap: anywhere; }
.chart { display: block; width: 100%; height: auto; overflow: visible; }
.chart .grid { color: var(--rule); stroke-width: 0.7; }
.chart .base { color: var(--muted); stroke-width: 0.7; }
.chart circle { fill: currentColor; }
.chart text { font: 7.6px var(--sans); fill: var(--muted); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr)); gap: 20px 24px; }
.pairs .film div { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.pairs img { image-rendering: pixelated; }
.film figcaption b.consistent { color: var(--reconstruction); }
.film figcaption b.inconsistent { color: var(--wrong); }
.above { margin: 14px 0 4px; }
.scroll { overflow-x: auto; margin: 0 0 8px; }
.figures { display: table; width: 100%; font-size: 0.86rem; }
.figures th, .figures td { padding: 5px 7px; text-align: right; vertical-align: baseline;
  white-space: nowrap; }
.figures thead th { white-space: normal; line-height: 1.3; }
.figures th:first-child, .figures .text { text-align: left; }
.figures th:first-child { padding-left: 0; position: sticky; left: 0; background: var(--ground);
  font-weight: 600; }
.figures thead th { font-weight: 600; color: var(--muted); vertical-align: bottom;
  border-bottom: 1px solid var(--muted); }
.figures thead .group { text-align: center; border-bottom: 1px solid var(--rule); }
.figures tbody tr { border-bottom: 1px solid var(--rule); }
.figures tbody tr.first { border-top: 1px solid var(--muted); }
.figures .strong { font-weight: 650; }
.figures .pair { padding-top: 12px; }
.figures .pair span { position: sticky; left: 0; }
.figures .series th { font-weight: 400; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr));
  gap: 8px 48px; }
.columns h3 { margin-top: 24px; }
.facts { display: grid; grid-template-columns: minmax(7.5rem, max-content) minmax(0, 1fr); margin: 0;
  font-size: 0.9rem; }
.facts > dt, .facts > dd { margin: 0; padding: 4px 0; border-bottom: 1px solid var(--rule);
  overflow-wrap: anywhere; }
.facts > dt { color: var(--muted); padding-right: 20px; max-width: 18rem; }
.facts .facts { font-size: 1em; }
.facts .facts > :nth-last-child(-n+2) { border-bottom: 0; }
.bars { display: grid; grid-template-columns: minmax(0, max-content) minmax(48px, 1fr) max-content;
  gap: 6px 14px; align-items: center; margin: 8px 0; padding: 0; list-style: none; font-size: 0.9rem;
  font-variant-numeric: tabular-nums; }
.bars li { display: contents; }
.bars i { display: block; height: 9px; background: var(--model); border-radius: 0 2px 2px 0; min-width: 1px; }
.bars .total { font-weight: 650; }
details { margin: 12px 0; }
summary { cursor: pointer; font-size: 0.93rem; color: var(--model); }
footer { margin-top: 48px; padding-bottom: 48px; color: var(--muted); font-size: 0.86rem; }
@media (max-width: 760px) {
  main, header, footer { padding-left: 18px; padding-right: 18px; }
  header { padding-top: 28px; }
  .films, .films tbody, .films tr, .films th, .films td { display: block; width: auto; }
  .films thead { display: none; }
  .films tbody th { padding: 12px 0 8px; font-size: 1.06rem; }
  .films small { display: inline; margin-left: 8px; }
  .films small br { display: none; }
  .films td { padding: 0 0 12px; }
  .film { background: var(--panel); border: 1px solid var(--rule); border-radius: 8px;
    padding: 10px 12px 12px; }
  .policy { display: block; font-weight: 600; font-size: 0.92rem; margin-bottom: 6px;
    overflow-wrap: anywhere; }
  .figures th:first-child { white-space: normal; min-width: 6.4rem; overflow-wrap: break-word; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 18px 20px; }
  .facts { grid-template-columns: minmax(6rem, 9.5rem) minmax(0, 1fr); }
  .facts > dt { padding-right: 12px; }
  .facts .facts { grid-template-columns: minmax(0, 1fr); }
  .facts .facts > dt { border-bottom: 0; padding-bottom: 0; }
}
@media print { nav, .player { display: none; } figure { break-inside: avoid; } }
"""
