"""The style sheet of the HTML report."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #fff; --soft: #5c6570; --line: #d5dae0;
  --ok: #1a6b3c; --bad: #b3261e; --bar: #2f6fb0; --wash: #f3f5f7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #15181b; --soft: #a3adb8;
  --line: #363d44; --ok: #6fd39a; --bad: #ff9a90; --bar: #7fb2e8; --wash: #1f2429; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict { padding: .75rem 1rem; border-left: .3rem solid; background: var(--wash); }
.verdict.passed, .ok { color: var(--ok); } .verdict.failed, .failed { color: var(--bad); }
span.ok, span.failed { font-weight: 600; }
ul { padding-left: 1.25rem; margin: 0; } li { overflow-wrap: anywhere; }
.images { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 1 1 14rem; max-width: 20rem; }
figure img { display: block; width: 100%; height: auto; image-rendering: pixelated;
  border: 1px solid var(--line); background: #000; }
figcaption { font-size: .9rem; color: var(--soft); padding-top: .35rem; }
figcaption strong { color: var(--ink); }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .75rem .4rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; }
.bar { display: block; width: 10rem; max-width: 100%; height: .55rem; margin: .35rem 0 .2rem;
  background: var(--wash); }
.bar rect { fill: var(--bar); } .bar rect.over { fill: var(--bad); }
.bar line { stroke: var(--ink); stroke-width: 2; }
dl { margin: 0; } dl div { display: flex; gap: 1rem; padding: .25rem 0;
  border-bottom: 1px solid var(--line); }
dt { flex: 0 0 8rem; color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
@media (max-width: 46rem) {
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody, tr, td, caption { display: block; width: 100%; }
  tr { padding: .6rem 0; border-bottom: 1px solid var(--line); }
  td { border: 0; padding: .1rem 0; display: flex; gap: 0 .5rem; }
  td > div { min-width: 0; overflow-wrap: anywhere; }
  td::before { content: attr(data-name); flex: 0 0 5rem; color: var(--soft); }
}
@media print { main { max-width: none; } }
"""
"""Works in light and dark, on a telephone and on paper; without colour too, as words say it all."""
