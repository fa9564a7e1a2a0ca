"""The style sheet: light and dark, wide and narrow, without a web font."""

CSS = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --sheet: #ffffff; --ink: #1b2330; --quiet: #5c6778; --rule: #e2e6ec;
  --accent: #2457c5;
  --c0: #2457c5; --c1: #c2410c; --c2: #15803d; --c3: #7e22ce; --c4: #0e7490; --c5: #a16207;
  --c6: #be185d; --c7: #4d7c0f; --c8: #475569; --c9: #9f1239; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161d; --sheet: #1a2029; --ink: #e7ebf1; --quiet: #9aa6b8; --rule: #2d3644;
  --accent: #8ab0ff;
  --c0: #8ab0ff; --c1: #fb9a66; --c2: #6fd08c; --c3: #cf9bff; --c4: #5fd0e6; --c5: #e6c15a;
  --c6: #f58ab8; --c7: #b5dc6a; --c8: #a9b6c8; --c9: #ff9aa8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 56px; }
h1 { font-size: clamp(1.6rem, 4vw, 2.25rem); line-height: 1.15; margin: 0 0 10px;
  letter-spacing: -0.02em; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 0 0 4px; letter-spacing: -0.01em; }
.lead { font-size: 1.08rem; color: var(--quiet); max-width: 68ch; margin: 0 0 28px; }
section, .card { background: var(--sheet); border: 1px solid var(--rule); border-radius: 12px; }
section { padding: 22px 24px; margin-top: 18px; }
section > p { max-width: 75ch; }
.sub { color: var(--quiet); margin: 0 0 12px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; }
.card { padding: 16px 18px; }
.card .label { color: var(--quiet); font-size: .85rem; }
.card .value { font-size: 1.75rem; font-weight: 650; letter-spacing: -0.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; color: var(--accent); overflow-wrap: anywhere; }
.note { color: var(--quiet); font-size: .85rem; margin: 4px 0 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr));
  gap: 20px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 20px; }
figure { margin: 12px 0 0; min-width: 0; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: 8px; display: flex;
  flex-wrap: wrap; gap: 2px 14px; align-items: baseline; }
.panels img { display: block; width: 100%; max-width: 560px; image-rendering: pixelated;
  border-radius: 6px; border: 1px solid var(--rule); }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--quiet); font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--rule); }
svg .axis, svg .tick { stroke: var(--quiet); }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { display: inline-flex; flex-wrap: wrap; gap: 2px 14px; font-weight: 400; }
.key::before { content: ""; display: inline-block; width: 16px; height: 3px; border-radius: 2px;
  background: currentColor; margin-right: 6px; vertical-align: middle; }
.s0 { color: var(--c0); } .s1 { color: var(--c1); } .s2 { color: var(--c2); }
.s3 { color: var(--c3); } .s4 { color: var(--c4); } .s5 { color: var(--c5); }
.s6 { color: var(--c6); } .s7 { color: var(--c7); } .s8 { color: var(--c8); }
.s9 { color: var(--c9); }
svg polyline { stroke: currentColor; } svg circle { fill: currentColor; }
.scroll { overflow-x: auto; margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: 8px 14px 8px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th { color: var(--quiet); font-weight: 600; font-size: .82rem; white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
tr:has(+ .detail) td { border-bottom: 0; padding-bottom: 0; font-weight: 550; }
.detail td { color: var(--quiet); font-size: .82rem; line-height: 1.45; padding-top: 1px; }
tr:last-child td { border-bottom: 0; }
dl { display: grid; grid-template-columns: minmax(120px, max-content) minmax(0, 1fr); gap: 6px 20px;
  margin: 12px 0 0; font-size: .92rem; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; font-size: 1.15rem; font-weight: 700; letter-spacing: -0.01em; }
footer { color: var(--quiet); font-size: .85rem; margin-top: 24px; overflow-wrap: anywhere; }
@media print { body { background: none; } section, .card { break-inside: avoid; } }
""".strip()
