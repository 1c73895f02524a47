"""Write what is made from the metric declarations into docker/: python -m monitoring.generate."""

from pathlib import Path

from monitoring.alerts import rules_yaml
from monitoring.dashboard import dashboard_json

DOCKER = Path(__file__).parents[1] / "docker"
RULES = DOCKER / "prometheus" / "rules" / "ttc.yml"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "ttc.json"


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    return {RULES: rules_yaml(), DASHBOARD: dashboard_json()}


def main() -> None:
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(DOCKER.parent))


if __name__ == "__main__":
    main()
