"""Each value of a chart has a comment, and each of the schema's is among them: `chart_values.py CHART`."""

import json
import pathlib
import re
import sys

chart = pathlib.Path(sys.argv[1])
schema = json.loads((chart / "values.schema.json").read_text())


def known(node: dict, path: str) -> set[str]:
    """All paths of objects whose keys the schema lists."""
    if "$ref" in node:
        node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]]
    paths = {path} if path else set()
    for name, below in node.get("properties", {}).items():
        paths |= known(below, f"{path}.{name}".lstrip("."))
    return paths


problems, found, above, before = [], set(), [], ""
for number, line in enumerate((chart / "values.yaml").read_text().splitlines(), 1):
    if match := re.fullmatch(r"( *)(\w+):(.*)", line):
        depth = len(match[1]) // 2
        above[depth:] = [match[2]]
        found.add(".".join(above))
        if match[3].strip() and not before.lstrip().startswith("#"):
            problems.append(f"values.yaml:{number}: `{'.'.join(above)}` has no comment")
    before = line
version = re.search(r'^version = "(.*)"', pathlib.Path("Cargo.toml").read_text(), re.M)[1]
for field in ("version", "appVersion"):
    if f"\n{field}: {version}\n" not in (chart / "Chart.yaml").read_text():
        problems.append(f"Chart.yaml: {field} is not {version}, as Cargo.toml has it")
listed = known(schema, "")
problems += [f"values.yaml lacks `{path}`, which the schema has" for path in sorted(listed - found - {"global"})]
problems += [f"the schema lacks `{path}`" for path in sorted(found - listed)]
# Keys of a strategy and of resources are Kubernetes' own, and may be left out.
problems = [p for p in problems if not re.search(r"`(\w+)\.(strategy|resources)\.", p)]
if problems:
    sys.exit("\n".join(problems))
print(f"chart: {len(found)} values, each with its comment and in the schema")
