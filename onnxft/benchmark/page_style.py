"""The style sheet of the HTML page."""

CSS = """
:root{color-scheme:light dark;--ink:#1b2026;--faint:#5b6570;--page:#f6f7f9;--card:#fff;--line:#dde1e6;--good:#08704c;
--bad:#b3261e;--note:#8a5a00}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--faint:#9aa4af;--page:#101317;--card:#191d23;--line:#2e353e;
--good:#4fd1a1;--bad:#ff8a80;--note:#e5b567}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
header,main{max-width:76rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2rem}
main{padding-bottom:3rem}
h1{margin:0;font-size:1.9rem;line-height:1.2}
h2{margin:2rem 0 .6rem;font-size:1.05rem}
p{margin:.3rem 0}
.eyebrow,.meta,figcaption,small{color:var(--faint)}
.eyebrow{font-size:.85rem;letter-spacing:.04em}
.meta,figcaption{font-size:.85rem}
.verdict{margin:.7rem 0;font-size:1.2rem;line-height:1.4;font-weight:600}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:.45rem .75rem;text-align:right;white-space:nowrap;font-weight:400}
th[scope=row],.words,.group th{text-align:left}
th[scope=row]{font-weight:600}
td.words,th[scope=row]{white-space:normal;min-width:6.5rem;max-width:min(24rem,45vw);overflow-wrap:break-word}
th[scope=row],thead th:first-child{position:sticky;left:0;background:var(--card)}
thead th{color:var(--faint);font-size:.85rem;vertical-align:bottom;border-bottom:1px solid var(--line)}
thead th{white-space:normal;max-width:13rem;overflow-wrap:break-word}
thead small{display:block;font-size:.95em}
tbody tr+tr>*{border-top:1px solid var(--line)}
tbody+tbody>tr:first-child>*{border-top:2px solid var(--line)}
.group th{color:var(--faint);font-size:.85rem;font-weight:600;background:var(--page)}
td strong{color:var(--good);font-weight:700}
tr.failed *,li.failed{color:var(--bad)}
.notes{padding-left:1.1rem;margin:.8rem 0;font-size:.9rem;color:var(--note)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1rem;margin-top:2rem}
figure{margin:0;padding:1rem;background:var(--card);border:1px solid var(--line);border-radius:10px;min-width:0}
figure h2{margin:0 0 .5rem}
figure svg{display:block;width:100%;height:auto;max-width:34rem;margin:0 auto}
figure:last-child:nth-child(odd){grid-column:1/-1}
@media(prefers-color-scheme:dark){figure svg,.legend i{filter:brightness(1.2)}}
figure text{font-family:system-ui,sans-serif!important}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;list-style:none;margin:.5rem 0;padding:0;font-size:.85rem}
.legend i{display:inline-block;width:.75rem;height:.75rem;border-radius:3px;margin-right:.4rem}
details{background:var(--card);border:1px solid var(--line);border-radius:10px;margin:.5rem 0;padding:.55rem .9rem}
summary{cursor:pointer;font-weight:600}
details .scroll{margin-top:.6rem;border-width:1px 0 0;border-radius:0;max-height:28rem;overflow-y:auto}
details td.words{min-width:9rem}
details details{border-width:1px 0 0;border-radius:0;margin:.5rem 0 0;padding:.5rem 0 0}
details details summary{font-weight:400}
pre{margin:.6rem 0 0;white-space:pre-wrap;font-size:.85rem;overflow-wrap:anywhere}
"""
