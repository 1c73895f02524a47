"""Write PromQL about declared metrics: a metric that does not exist is an AttributeError here."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.metrics import Metrics

# Of a model with few enough classes for every metric to be there.
METRICS = Metrics(CollectorRegistry(), classes=10, model={})
PER_TARGET = ("job", "instance")


def name_of(metric: Counter | Gauge | Histogram) -> str:
    """The metric's name as people write it: a counter's ends in _total."""
    (family,) = metric.describe()
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


class Queries:
    """Expressions over the declared metrics, grouped by target.

    Args:
        where: label matchers that every selector has.
        window: of rates and increases.
        by: labels that the results keep.
    """

    def __init__(self, where: str = "", window: str = "5m", by: Sequence[str] = PER_TARGET) -> None:
        self._where, self.window, self._by = where, window, tuple(by)

    def over(self, window: str) -> "Queries":
        """The same with another window."""
        return Queries(self._where, window, self._by)

    def selector(self, name: str, matchers: str = "") -> str:
        """A selector of a series by its full name."""
        where = ",".join(part for part in (self._where, matchers) if part)
        return f"{name}{{{where}}}" if where else name

    def gauge(self, metric: Gauge, matchers: str = "") -> str:
        """The value itself, with all its labels."""
        return self.selector(name_of(metric), matchers)

    def rate(
        self, metric: Counter, matchers: str = "", *, by: Sequence[str] = (), offset: str = ""
    ) -> str:
        """A counter's events a second."""
        return self._sum("rate", name_of(metric), matchers, by, offset)

    def increase(
        self, metric: Counter, matchers: str = "", *, by: Sequence[str] = (), offset: str = ""
    ) -> str:
        """A counter's events within the window."""
        return self._sum("increase", name_of(metric), matchers, by, offset)

    def mean(self, metric: Histogram, matchers: str = "", *, by: Sequence[str] = ()) -> str:
        """The mean of what a histogram observed within the window."""
        name = name_of(metric)
        total = self._sum("rate", f"{name}_sum", matchers, by)
        return f"{total} / {self.observed(metric, matchers, by=by)}"

    def observed(self, metric: Histogram, matchers: str = "", *, by: Sequence[str] = ()) -> str:
        """How often a histogram observed something, a second."""
        return self._sum("rate", f"{name_of(metric)}_count", matchers, by)

    def time_in(self, metric: Histogram, matchers: str = "", *, by: Sequence[str] = ()) -> str:
        """The sum of what a histogram observed, a second."""
        return self._sum("rate", f"{name_of(metric)}_sum", matchers, by)

    def quantile(
        self, q: float, metric: Histogram, matchers: str = "", *, by: Sequence[str] = ()
    ) -> str:
        """A quantile of what a histogram observed within the window."""
        buckets = self._sum("rate", f"{name_of(metric)}_bucket", matchers, ("le", *by))
        return f"histogram_quantile({q:g}, {buckets})"

    def buckets(self, metric: Histogram, matchers: str = "") -> str:
        """How many observations came into each bucket within the window, all targets together."""
        selector = self.selector(f"{name_of(metric)}_bucket", matchers)
        return f"sum by (le) (increase({selector}[{self.window}]))"

    def ratio(self, part: str, whole: str) -> str:
        """A share of 0 to 1; nothing where there is no whole."""
        return f"{part} / ({whole} > 0)"

    def _sum(
        self, function: str, name: str, matchers: str, by: Sequence[str], offset: str = ""
    ) -> str:
        labels = ", ".join((*self._by, *by))
        late = f" offset {offset}" if offset else ""
        call = f"{function}({self.selector(name, matchers)}[{self.window}]{late})"
        return f"sum by ({labels}) ({call})"
