"""What the chart's own certificates do over upgrades: `chart_upgrades.py CHART`.

Helm reads what a cluster has by its API; a small server here answers as one whose Secrets are those of the
release before. (`helm template` alone sees no cluster, and makes everything anew.)
"""

import base64
import http.server
import json
import re
import subprocess
import sys
import tempfile
import threading
import time

chart, secrets = sys.argv[1], {}
FIRST = {"demo-attune-ca", "demo-attune-generator-tls", "demo-attune-reward-tls"}


class Cluster(http.server.BaseHTTPRequestHandler):
    """As much of an API server as `lookup` asks for."""

    def do_GET(self):
        path = self.path.split("?")[0]
        secret = re.fullmatch(r"/api/v1/namespaces/attune/secrets/(.+)", path)
        kinds = [{"name": "secrets", "namespaced": True, "kind": "Secret", "verbs": ["get", "list"]}]
        answers = {
            "/version": {"major": "1", "minor": "30", "gitVersion": "v1.30.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
            "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": kinds},
        }
        answer = secrets.get(secret[1]) if secret else answers.get(path)
        body = json.dumps(answer or {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})
        self.send_response(200 if answer else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def release(*flags: str) -> dict:
    """The Secrets that an install or upgrade against the cluster would write."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        cluster = {"name": "x", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        context = {"name": "x", "context": {"cluster": "x", "user": "x", "namespace": "attune"}}
        user = {"name": "x", "user": {}}
        whole = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
        json.dump(whole | {"users": [user], "current-context": "x"}, config)
        config.flush()
        done = subprocess.run(
            ["helm", "template", "demo", chart, "--namespace", "attune", "--kubeconfig", config.name]
            + ["--dry-run=server", "--kube-version", "1.30.0", "--show-only", "templates/tls-generated.yaml", *flags],
            capture_output=True, text=True, check=False,
        )
    if done.returncode:
        sys.exit(done.stderr)
    found = {}
    for text in done.stdout.split("\n---\n"):
        field = lambda name: re.search(rf'^ +{re.escape(name)}: "?(.*?)"?$', text, re.M)[1]
        notes = dict(re.findall(r'^    (attune/[\w-]+): "(.*)"$', text, re.M))
        data = {name: field(name) for name in ("tls.crt", "tls.key", "ca.crt")}
        found[field("name")] = {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": field("name"), "annotations": notes},
            "data": data,
        }
    return found


def check(holds: bool, what: str):
    if not holds:
        sys.exit(f"chart: {what}")


def renewed(before: dict, after: dict) -> set[str]:
    return {name for name in after if after[name]["data"]["tls.crt"] != before[name]["data"]["tls.crt"]}


def aged(kept: dict, *names: str) -> dict:
    """The same Secrets, some of them in their last third."""
    old = json.loads(json.dumps(kept))
    for name in names:
        old[name]["metadata"]["annotations"]["attune/renew-after"] = str(int(time.time()) - 1)
    return old


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
threading.Thread(target=server.serve_forever, daemon=True).start()

first = release()
check(set(first) == FIRST, f"an install makes {sorted(first)}")
authority, leaf = "demo-attune-ca", FIRST - {"demo-attune-ca"}
secrets.update(first)
check(release() == first, "an upgrade makes other certificates")
check(renewed(first, release("--set=tls.generated.serial=2")) == leaf, "a new serial does not renew")
extra = renewed(first, release("--set=tls.extraNames={attune.example.com}"))
check(extra == {"demo-attune-generator-tls"}, f"a further name renews {extra}")

secrets.update(aged(first, "demo-attune-reward-tls"))
check(renewed(first, release()) == {"demo-attune-reward-tls"}, "the last third does not renew")

secrets.update(aged(first, authority))
second = release()
check(renewed(first, second) == FIRST, "a new authority does not renew all")
bundle = base64.b64decode(second["demo-attune-reward-tls"]["data"]["ca.crt"])
for each in (first, second):
    check(base64.b64decode(each[authority]["data"]["tls.crt"]) in bundle, "an authority is not believed")
secrets.update(second)
check(release() == second, "the bundle of authorities is not kept")
print("chart: certificates are kept over upgrades, and renewed by time, names, serial and authority")
