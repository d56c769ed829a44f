"""The tab "SLO" of Locust's web interface, and its CSV file: attainment and goodput, live.

Owns how rows get into the page: Locust's own page draws any table that is described to it
(its docs, "Extending the web UI"), and asks /stats/requests for the data.
"""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from flask import Response, request

from loadtest.locust_load.slo_counts import Row, csv_header, csv_rows

KEY = "slo"
CSV_PATH = "/stats/slo/csv"
COLUMNS = (
    ("name", "Model, SLO"),
    ("due", "# due"),
    ("in_time", "# in time"),
    ("late", "# late"),
    ("refused", "# refused (429, 503, 422)"),
    ("expired", "# expired (504)"),
    ("failed", "# failed"),
    ("unsent", "# not sent"),
    ("attainment", "Attainment %"),
    ("goodput_per_s", "Goodput/s"),
    ("goodput_now_per_s", "Goodput/s, last 10 s"),
    ("refused_after_ms", "Mean ms to a refusal"),
)


def add_tab(web_ui: Any, rows: Callable[[], list[Row]]) -> None:
    """`web_ui` is Locust's, `rows` are asked for as often as the page asks."""
    structure = [{"key": key, "title": title} for key, title in COLUMNS]
    web_ui.template_args = {
        **web_ui.template_args,
        "extended_tabs": [{"title": "SLO", "key": KEY}],
        "extended_tables": [{"key": KEY, "structure": structure}],
        "extended_csv_files": [{"href": CSV_PATH, "title": "Download SLO CSV"}],
    }

    @web_ui.app.after_request  # type: ignore[untyped-decorator]
    def add_rows(response: Response) -> Response:
        if request.path == "/stats/requests" and response.is_json:
            data = [_shown(row) for row in rows()]
            report = {**(response.json or {}), "extended_stats": [{"key": KEY, "data": data}]}
            response.set_data(json.dumps(report))
        return response

    @web_ui.app.route(CSV_PATH)  # type: ignore[untyped-decorator]
    @web_ui.auth_required_if_enabled  # type: ignore[untyped-decorator]
    def slo_csv() -> Response:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(csv_header())
        writer.writerows(csv_rows(rows()))
        headers = {"content-disposition": "attachment;filename=slo.csv"}
        return Response(text.getvalue(), mimetype="text/csv", headers=headers)


def _shown(row: Row) -> dict[str, Any]:
    shown: dict[str, Any] = row._asdict()
    shown["attainment"] = None if row.attainment is None else 100.0 * row.attainment
    for key, value in shown.items():
        if isinstance(value, float):
            shown[key] = round(value, 2)
        elif value is None:
            shown[key] = ""
    return shown
