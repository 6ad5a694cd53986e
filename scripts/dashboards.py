"""Checks what looks at the services: `dashboards.py static`, then `dashboards.py live PROMETHEUS SCALERS`.

static: the dashboard's form; every metric that a query names is in the table of docs/operations.md; every
alert has its section in docs/kubernetes.md. live: every query of the dashboard, the alerts and the
autoscalers (SCALERS: the chart, rendered with KEDA) has an answer from a Prometheus that reads a pair at work.
"""

import json
import pathlib
import re
import sys
import time
import urllib.parse
import urllib.request

DASHBOARD = pathlib.Path("deploy/grafana/dashboards/attune.json")
ALERTS = pathlib.Path("deploy/prometheus/alerts.yaml")
ADAPTER = pathlib.Path("deploy/prometheus/adapter.yaml")
# A pair at work has no such requests: that there are some of any kind has to do.
FAULTS = re.compile(r'code=~?"[^"]*"')
# Work that some pairs never have: 0 and no series say the same.
RARE = {"attune_session_failures_total"}


def panels() -> list[dict]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def dashboard() -> dict[str, str]:
    """Each query with what Grafana puts in for its variables."""
    put_in = {"$__rate_interval": "15s", "$namespace": "attune", "$release": "demo"}
    queries = {}
    for panel in panels():
        for target in panel["targets"]:
            expr = target["expr"]
            for name, value in put_in.items():
                expr = expr.replace(name, value)
            queries[f"panel '{panel['title']}' {target['refId']}"] = expr
    return queries


def alerts() -> dict[str, str]:
    """The alerts' expressions, as the file has them."""
    rule = re.compile(r"      - alert: (\w+)\n        expr: (?:\|\n((?:          .*\n)+)|(.*)\n)")
    return {f"alert {name}": block or line for name, block, line in rule.findall(ALERTS.read_text())}


def sides(expr: str) -> list[str]:
    """The series that an alert compares: its parts between comparisons and set operators, numbers aside."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(expr):
        depth += (char in "({") - (char in ")}")
        if depth == 0 and (operator := re.match(r"\s(>|==|unless|and)\s", expr[at:])):
            parts.append(expr[start:at])
            start = at + operator.end()
    parts.append(expr[start:])
    parts = [re.sub(r"^\s*[\d.]+ \*", "", part).strip() for part in parts]
    return [FAULTS.sub('code=~".+"', part) for part in parts if not re.fullmatch(r"[\d.]+", part)]


def metrics(expr: str) -> set[str]:
    expr = re.sub(r"\{.*?\}|\bby \(.*?\)|\[.*?\]", "", expr)
    names = set(re.findall(r"\b(?:attune|gen_ai)_\w+|\bup\b", expr))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def static() -> list[str]:
    problems, places = [], set()
    whole = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in whole["panels"]]
    if len(ids) != len(set(ids)):
        problems.append("two panels have one id")
    for panel in panels():
        for field in ("title", "description", "datasource", "targets", "fieldConfig"):
            if not panel.get(field):
                problems.append(f"panel {panel['id']} has no {field}")
        if not panel["fieldConfig"]["defaults"].get("unit"):
            problems.append(f"panel {panel['id']} has no unit")
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        if places & cells or at["x"] + at["w"] > 24:
            problems.append(f"panel {panel['id']} lies on another one")
        places |= cells
    table = set(re.findall(r"^\| `(\w+)", pathlib.Path("docs/operations.md").read_text(), re.M)) | {"up"}
    for name, expr in (dashboard() | alerts()).items():
        problems += [f"{name}: no metric `{m}` in docs/operations.md" for m in sorted(metrics(expr) - table)]
    guide = pathlib.Path("docs/kubernetes.md").read_text()
    text = ALERTS.read_text()
    found = [name.removeprefix("alert ") for name in alerts()]
    if len(found) != text.count("- alert: "):
        problems.append("an alert was not read")
    for name in found:
        if f"### {name}\n" not in guide or f"docs/kubernetes.md#{name.lower()}\n" not in text:
            problems.append(f"{name} has no section in docs/kubernetes.md, or no link to it")
    return problems


def scalers(rendered: str) -> dict[str, str]:
    """The queries of KEDA's triggers, and those that the adapter makes of its rule for the HPAs' metrics."""
    keda = re.findall(r"^        query: (.*)$", pathlib.Path(rendered).read_text(), re.M)
    rule = ADAPTER.read_text()
    series = re.search(r"\^attune_\((.*?)\)\$", rule)[1].split("|")
    query = re.search(r"metricsQuery: (.*)$", rule, re.M)[1]
    matchers = 'namespace="attune",pod=~"generator|reward"'
    adapter = [
        query.replace("<<.Series>>", f"attune_{name}").replace("<<.LabelMatchers>>", matchers) for name in series
    ]
    return {f"autoscaler {query}": query for query in keda + adapter}


def live(prometheus: str, rendered: str) -> list[str]:
    def ask(path: str, **query) -> dict:
        url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            sys.exit(f"dashboards: {query}: {error.read().decode()}")

    found = scalers(rendered)
    if len(found) < 6:
        return [f"the autoscalers have {len(found)} queries"]
    wanted = dashboard() | found
    for name, expr in alerts().items():
        wanted |= {f"{name}, side {i}": side for i, side in enumerate(sides(expr))}
    wanted = {name: expr for name, expr in wanted.items() if not metrics(expr) & RARE}
    count, until = len(wanted), time.monotonic() + 90
    while wanted and time.monotonic() < until:
        wanted = {name: expr for name, expr in wanted.items() if not ask("query", query=expr)["result"]}
        time.sleep(0.5)
    problems = [f"{name}: no answer to {expr}" for name, expr in wanted.items()]
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    problems += [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule.get("lastError")]
    if len(rules) != len(alerts()):
        problems.append(f"Prometheus has {len(rules)} rules of {len(alerts())}")
    print(f"dashboards: {count} queries have an answer from a pair at work" if not problems else "")
    return problems


done = static() if sys.argv[1] == "static" else live(*sys.argv[2:])
if done:
    sys.exit("dashboards: " + "\n".join(done))
