"""Shared by all pages: style sheet, escaping, thumbnails, sampling."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from tasks.names import seeded_hash
from tasks.store import Store

STYLE = """
:root{color-scheme:light dark;--bg:#f7f6f3;--card:#fff;--ink:#1b2230;--soft:#667085;--line:#e4e1d9;--accent:#3653d9;--good:#18794e;--bad:#b3261e;
--c1:#3653d9;--c2:#b4530a;--c3:#0f7a6c;--tint:#eef1fd;--shadow:0 1px 2px #1b22300d,0 6px 24px #1b22300a}
@media (prefers-color-scheme:dark){:root{--bg:#10131a;--card:#181c26;--ink:#e8eaf0;--soft:#98a2b3;--line:#2a3040;--accent:#8ea2ff;--good:#5fd39b;--bad:#ff9086;
--c1:#8ea2ff;--c2:#f2a65a;--c3:#57cbb9;--tint:#1f2638;--shadow:none}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1240px;margin:0 auto;padding:40px 20px 72px}h1{font-size:clamp(28px,4vw,42px);line-height:1.15;letter-spacing:-.02em;margin:6px 0 8px}
h2{font-size:22px;letter-spacing:-.01em;margin:56px 0 4px}p.lead{color:var(--soft);margin:0 0 20px;max-width:72ch}
.over{color:var(--accent);font-weight:600;font-size:14px}.mono{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:12px}
.stats{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:28px}
.stat,.card,.panel{background:var(--card);border:1px solid var(--line);border-radius:14px;box-shadow:var(--shadow)}
.stat{padding:16px 18px}.stat b{display:block;font-size:26px;letter-spacing:-.02em;font-variant-numeric:tabular-nums}.stat span{color:var(--soft);font-size:13px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:18px;margin-top:20px}
.card{padding:16px;display:flex;flex-direction:column;gap:14px}.pair{display:grid;grid-template-columns:1fr 28px 1fr;align-items:center;gap:4px}
figure{margin:0}figure img{width:100%;aspect-ratio:1;object-fit:contain;background:var(--tint);border-radius:10px;display:block}
figcaption{font-size:12px;color:var(--soft);margin-top:5px;display:flex;justify-content:space-between;gap:6px}.arrow{color:var(--soft);font-size:20px;text-align:center;padding-bottom:20px}
ol{list-style:none;margin:0;padding:0;display:grid;gap:6px}ol li{display:grid;grid-template-columns:1fr auto;gap:10px;font-size:14.5px;line-height:1.4;padding:7px 10px;background:var(--tint);border-radius:8px}
ol small{color:var(--soft);display:block;font-size:11.5px}.score{font-variant-numeric:tabular-nums;font-size:12.5px;font-weight:650;color:var(--good);white-space:nowrap}
.neg{display:grid;grid-template-columns:repeat(5,minmax(0,1fr));gap:8px;border-top:1px solid var(--line);padding-top:12px}.neg figcaption{flex-direction:column;align-items:center;gap:0;line-height:1.3}.neg small{font-size:11px}.neg .score{color:var(--soft)}.neg .hot{color:var(--bad)}
.chips{display:flex;flex-wrap:wrap;gap:6px;margin-top:auto}.chip{font-size:12px;padding:2px 9px;border-radius:99px;border:1px solid var(--line);color:var(--soft);font-variant-numeric:tabular-nums}
.chip.on{border-color:currentColor;font-weight:600}.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:18px;margin-top:18px}
.panel{padding:18px 20px;overflow-x:auto}.panel h3{margin:0 0 2px;font-size:16px}.panel p{margin:0 0 12px;color:var(--soft);font-size:13px}
.bar small{display:block;color:var(--soft);font-size:11.5px;line-height:1.3}.bar{display:grid;grid-template-columns:minmax(0,3fr) minmax(40px,2fr) 60px;gap:12px;align-items:center;font-size:14px;padding:3px 0}.bar i{display:block;height:10px;border-radius:5px;background:var(--accent);min-width:2px}
.bar b{font-variant-numeric:tabular-nums;text-align:right}table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}th,td{padding:8px 10px;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:600;font-size:12.5px}td.best{font-weight:700;color:var(--good)}svg{display:block;width:100%;height:auto}
footer{margin-top:56px;color:var(--soft);font-size:13px;overflow-wrap:anywhere}
"""


def escaped(value: Any) -> str:
    """Text for HTML, quotes too."""
    return html.escape(str(value), quote=True)


def sample(triplet_ids: Sequence[str], count: int, salt: str) -> list[str]:
    """`count` ids, the same for the same version, in an order without meaning."""
    return sorted(triplet_ids, key=lambda i: seeded_hash(salt, i))[:count]


def thumbnail(store: Store, image_id: str, side_px: int, quality: int) -> str:
    """An image as a data URI, no side above `side_px`."""
    image = store.read_image(image_id)
    image.thumbnail((side_px, side_px))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
