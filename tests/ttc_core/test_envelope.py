"""Whatever comes, a stream stays inside its envelope; within it, nothing is changed by it."""

import math
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.contract import CASES, Case, batches, eta, same, ttc, ttc_stream, walk
from tests.fixtures.networks import CLASSES, SIZE, make_model
from ttc_core.envelope.clauses import BUILT_IN, UNBOUNDED, Envelope
from ttc_core.envelope.enveloped import Enveloped
from ttc_core.envelope.ledger import Ledger
from ttc_core.envelope.limits import Limits, OutsideEnvelopeError, distance
from ttc_core.guard.evidence import Evidence
from ttc_core.guard.watch import SUSPECT, Watch
from ttc_core.methods import Adaptation, create
from ttc_core.methods.contract import Pending, Prediction
from ttc_core.methods.own import OwnMethod
from ttc_core.methods.parts.gradient import Gradient
from ttc_core.methods.parts.learner import AffineLearner
from ttc_core.methods.parts.statistics import MovingShare, MovingStatistics
from ttc_core.methods.settings import OptimizerSettings

MODEL = make_model()
LEARNERS = [
    Case("tent", {"statistics": "moving"}),
    Case("tent", {"statistics": "batch", "optimizer": "sgd"}),
    eta(statistics="moving"),
    Case("tipi", {"statistics": "moving", "answer": "after"}),
    ttc(statistics="moving"),
    ttc_stream(),
    ttc_stream(guard="on"),
    ttc_stream(on_shift=True),
]


def affine_of(method):
    return MODEL.affine_layout.flattened(method.state()["affine"])


def assert_inside(method, envelope):
    """By the numbers of its state: as a regulator would look."""
    if not method.state()["affine"]:
        return  # it says that it is at the source
    affine, source = affine_of(method), MODEL.source_affine
    assert affine.isfinite().all()
    assert float(distance(affine, source)) <= envelope.drift
    assert float((affine - source).abs().max()) <= envelope.largest_change
    for name, value in method.state()["affine"].items():
        if not envelope.lets_move(name):
            assert torch.equal(value, MODEL.affine[name])


def images_of(kind, count, seed):
    draw = torch.Generator().manual_seed(seed)
    shape = (count, 3, SIZE, SIZE)
    if kind == "noise":
        return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    if kind == "extreme":
        return 255 * torch.randint(0, 2, shape, generator=draw, dtype=torch.uint8)
    level = int(torch.randint(0, 256, (1,), generator=draw))
    return torch.full(shape, level, dtype=torch.uint8)


bounds = st.one_of(st.just(0.0), st.floats(1e-9, 0.5))
envelopes = st.builds(
    lambda drift, change, in_statistics, in_step, steps, parameters: Envelope.of(
        {
            "drift": drift,
            "largest_change": change,
            "image_in_statistics": in_statistics,
            "image_in_step": in_step,
            "steps_per_1000_images": steps,
            "parameters": parameters,
        }
    ),
    bounds,
    bounds,
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.sampled_from([0, 100, 300, 1000]),
    st.sampled_from([["*"], ["norm2.*"], ["*.bias"], []]),
)
acts = st.lists(
    st.tuples(
        st.sampled_from(["noise", "extreme", "flat", "save", "undo", "reset"]),
        st.integers(1, 7),
        st.integers(0, 99),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("case", LEARNERS, ids=lambda case: case.id)
@settings(max_examples=15, deadline=None)
@given(envelope=envelopes, acts=acts, lr=st.sampled_from([1e-3, 1.0, 1e6]))
def test_a_stream_is_inside_after_any_sequence_of_images(case, envelope, acts, lr):
    """Huge learning rates, odd images, undone, saved and read again: by bounds from 0 on."""
    method = create(case.name, MODEL, envelope=envelope, **{**case.settings, "lr": lr})
    for what, count, seed in acts:
        undo = method.undo_point()
        if what == "reset":
            method.reset()
        elif what == "save":
            state, method = method.state(), method.fork()
            method.restore(state)
        else:
            kind = "noise" if what == "undo" else what
            method.adapt(method.predict(images_of(kind, count, seed)))
            if what == "undo":
                undo()
        assert_inside(method, envelope)


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "source"], ids=lambda c: c.id)
def test_within_the_built_in_envelope_nothing_is_changed(case, models):
    """To the last bit of every state: what is built in cuts nothing that is usual."""
    model = models(case.network)
    free, within = (
        create(case.name, model, envelope=each, **case.settings) for each in (None, BUILT_IN)
    )
    for method in (free, within):
        walk(method, batches(4))
    assert not within.verdicts.told
    kept = {k: v for k, v in within.state().items() if k != "envelope"}
    assert same({k: v for k, v in free.state().items() if k != "envelope"}, kept)


def test_a_step_beyond_is_cut_to_the_edge_and_counted():
    """By the drift, with the direction kept; by the largest change, each number by itself."""
    far = {"lr": 0.1, "statistics": "moving"}
    for clause, bound in (("drift", 0.01), ("largest_change", 0.02)):
        envelope = Envelope.of({clause: bound})
        method = create("tent", MODEL, envelope=envelope, **far)
        walk(method, batches(3))
        assert_inside(method, envelope)
        assert method.verdicts.cut == {clause: 3}
        assert not method.verdicts.dropped
        source = MODEL.source_affine
        found = {
            "drift": float(distance(affine_of(method), source)),
            "largest_change": float((affine_of(method) - source).abs().max()),
        }
        assert found[clause] == pytest.approx(bound, rel=1e-4)
        assert method.drift == found["drift"]
        method.reset()
        assert not method.verdicts.told


def test_parameters_that_may_not_move_do_not_and_without_any_no_step_is_made():
    method = create("tent", MODEL, envelope=Envelope.of({"parameters": ["norm1.*"]}))
    walk(method, batches(3))
    assert method.version == 3
    assert method.verdicts.cut == {"parameters": 3}
    for name, value in method.state()["affine"].items():
        assert torch.equal(value, MODEL.affine[name]) == name.startswith("norm2")
    method = create("tent", MODEL, envelope=Envelope.of({"parameters": []}))
    walk(method, batches(3))
    assert (method.version, method.drift, method.pending_batches) == (0, 0.0, 0)
    assert method.verdicts.dropped == {"parameters": 3}


def test_a_pattern_that_fits_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"'norm9.*' fits none .* norm1.weight"):
        create("tent", MODEL, envelope=Envelope.of({"parameters": ["norm9*"]}))


def test_the_prototypes_of_t3a_stay_where_the_heads_weight_may_not_move():
    """Then each batch is dropped, and answers are those of the head's own prototypes."""
    fixed = create("t3a", MODEL, envelope=Envelope.of({"parameters": ["norm*"]}))
    moving = create("t3a", MODEL, envelope=Envelope.of({"parameters": ["head.weight"]}))
    images = batches(4)
    before = fixed.predict(images[0]).logits
    walk(fixed, images)
    walk(moving, images)
    assert torch.equal(fixed.predict(images[0]).logits, before)
    assert (fixed.verdicts.told, moving.verdicts.told) == ({"dropped": {"parameters": 4}}, {})
    with pytest.raises(OutsideEnvelopeError, match=r"does not name head.weight"):
        fixed.fork().restore(moving.state())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=100, max_size=300),
    st.sampled_from([1, 7, 20, 300, 999, 1000]),
)
def test_no_thousand_images_have_more_steps_than_allowed(sizes, allowed):
    """In batches of any sizes; and as many as can be, spread evenly."""
    limits = Limits(MODEL, Envelope.of({"steps_per_1000_images": allowed}))
    settings_, ledger = OptimizerSettings.create("tent", CLASSES, {}), Ledger()
    learner = AffineLearner(MODEL, settings_, limits=limits, ledger=ledger)
    flat = torch.ones_like(MODEL.source_affine)
    images, stepped_at, window = 0, [], deque()
    for size in sizes:
        images += size
        batch = Gradient(flat, 0.0, 0.0, None, size, None)
        if learner.learn(batch, images=size, step=True, answered=size).stepped:
            stepped_at.append(images)
        ledger.commit(range(size), learned=True)
    for at in stepped_at:
        window.append(at)
        while window[0] <= at - 1000:
            window.popleft()
        assert len(window) <= allowed
    assert len(stepped_at) == learner.steps > 0
    assert ledger.verdicts.dropped.get("steps_per_1000_images", 0) + learner.steps == len(sizes)


def test_a_step_for_one_images_sake_is_cut_to_its_share():
    """A lone image is all of its step; of ten, each is a tenth."""
    flat = torch.ones_like(MODEL.source_affine)
    settings_ = OptimizerSettings.create("tent", CLASSES, {})
    ways = {}
    for most in (1.0, 0.25):
        limits = Limits(MODEL, Envelope.of({"image_in_step": most}))
        for largest in (1.0, 0.5, 0.1):
            learner = AffineLearner(MODEL, settings_, limits=limits, ledger=Ledger())
            batch = Gradient(flat, 0.0, 0.0, None, 1, None, weight=1.0, largest_weight=largest)
            learner.learn(batch, images=1, step=True, answered=1)
            ways[most, largest] = learner.parameters.detach() - MODEL.source_affine
    for largest in (1.0, 0.5, 0.1):
        share = min(1.0, 0.25 / largest)
        torch.testing.assert_close(ways[0.25, largest], share * ways[1.0, largest])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_steps_behind_do_not_make_up_for_what_was_cut(optimizer):
    """An optimizer remembers: of a lone image's whole way, over thirty steps, a share is left."""
    ways = {}
    for most in (1.0, 0.05):
        limits = Limits(MODEL, Envelope.of({"image_in_step": most}))
        given = OptimizerSettings.create("tent", CLASSES, {"optimizer": optimizer, "lr": 0.001})
        learner, way = AffineLearner(MODEL, given, limits=limits, ledger=Ledger()), 0.0
        for number in range(30):
            flat = torch.full_like(MODEL.source_affine, float(number == 0))
            largest = 0.01 if number else 1.0
            batch = Gradient(flat, 0.0, 0.0, None, 1, None, weight=1.0, largest_weight=largest)
            before = learner.parameters.detach()
            learner.learn(batch, images=1, step=True, answered=1)
            way += float((learner.parameters.detach() - before).abs().max())
        ways[most] = way
    assert ways[0.05] == pytest.approx(0.05 * ways[1.0], rel=0.02)


def test_what_waits_for_a_step_shares_it():
    """Two batches of one image each: either is a half; and so after it was saved in between."""
    envelope = Envelope.of({"image_in_step": 0.5})
    method = create("ttc", MODEL, envelope=envelope, samples_per_step=2, ss=False, spc=False)
    for images in batches(6):
        saved, method = method.state(), method.fork()
        method.restore(saved)
        method.adapt(method.predict(images[:1]))
    assert method.version == 3
    assert not method.verdicts.told


@pytest.mark.parametrize("most", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_an_image_weighs_no_more_in_moving_statistics(most, count):
    """The first batch would replace the source's wholly: one of its images a share of 1 / N."""
    limits, ledger = Limits(MODEL, Envelope.of({"image_in_statistics": most})), Ledger()
    layers, ends = MODEL.moments_layout.views(MODEL.source_moments), []
    for odd in (0.0, 1e4):
        statistics = MovingStatistics(MODEL, warm_start=1, floor=0.5)
        statistics.keep_within(limits, ledger)
        # Of one image, in the mean over the batch's.
        share = MovingShare(count, {name: each + odd / count for name, each in layers.items()})
        prediction = Prediction.of(torch.zeros(count, CLASSES), pending=Pending(share=share))
        statistics.commit(prediction, learned=False)
        ends.append(statistics.state()["moments"].flat)
    assert float((ends[1] - ends[0]).abs().max()) / 1e4 <= most * 1.001
    assert ("image_in_statistics" in ledger.verdicts.cut) == (1 / count > most)


def test_a_saved_state_outside_is_refused_and_says_by_which_clause():
    """The method is as it was; what rounding alone has put outside is cut."""
    wide = create("tent", MODEL, lr=0.1)
    walk(wide, batches(3))
    state, drift = wide.state(), wide.drift
    for clauses, said in (
        ({"drift": drift / 2}, r"its drift is .*, and the envelope allows"),
        ({"largest_change": 0.01}, r"its largest change is "),
        ({"parameters": ["norm1.*"]}, r"parameters moved that"),
    ):
        narrow = create("tent", MODEL, lr=0.1, envelope=Envelope.of(clauses))
        with pytest.raises(OutsideEnvelopeError, match=said):
            narrow.restore(state)
        assert narrow.drift == 0
    envelope = Envelope.of({"drift": drift * 0.995})
    narrow = create("tent", MODEL, lr=0.1, envelope=envelope)
    narrow.restore(state)
    assert_inside(narrow, envelope)


def test_a_state_from_before_envelopes_goes_on_with_its_gradients():
    """Of what waits nothing is known, and each batch may have been one image."""
    method = create("ttc", MODEL, samples_per_step=18)
    walk(method, batches(2))
    state = {name: dict(each) for name, each in method.state().items() if name != "envelope"}
    del state["counters"]["pending_weight"], state["counters"]["pending_largest"]
    envelope = Envelope.of({"image_in_step": 0.1})
    after = create("ttc", MODEL, samples_per_step=18, envelope=envelope)
    after.restore(state)
    assert after.pending_batches == 2
    walk(after, batches(1, seed=3))
    assert (after.version, after.verdicts.cut) == (1, {"image_in_step": 1})


def test_a_roll_back_leads_inside_and_forgets_no_step():
    """A snapshot's numbers are rounded: one of the edge can be gone back to, too."""
    envelope = Envelope.of({"drift": 0.01, "steps_per_1000_images": 50})
    case = ttc_stream(guard="on", lr=1.0)
    method = create(case.name, MODEL, envelope=envelope, **case.settings)
    for number in range(90):
        method.adapt(method.predict(images_of("noise", 7, number)))
    (version, *_), counted = method.snapshots, method.verdicts.told
    assert counted["cut"]["drift"] > 0 < counted["dropped"]["steps_per_1000_images"]
    method.roll_back(version)
    assert method.version == version > 0
    assert method.verdicts.told == counted
    assert_inside(method, envelope)


class Leaping:
    """Its parameters leap with every batch; a stubborn one takes no state up, and a sparing one
    tells of parameters only once they are not the source's."""

    adapts = frozenset({"affine"})
    selects = False
    version = 0

    def __init__(self, model, how="ordinary", far=5.0):
        self.model, self.how, self.far = model, how, far
        self.settings = {}
        self.reset()

    def reset(self):
        self.moved = {name: each.clone() for name, each in self.model.affine.items()}

    def predict(self, images):
        logits = self.model.run(self.model.normalize(self.model.to_unit(images))).logits
        return Prediction.of(logits, selected=torch.ones(len(logits), dtype=torch.bool))

    def adapt(self, prediction):
        for each in self.moved.values():
            each += self.far
        return Adaptation(selected=len(prediction), stepped=True)

    def state(self):
        is_spared = self.how == "sparing" and same(self.moved, dict(self.model.affine))
        return {"affine": {} if is_spared else self.moved}

    def restore(self, state):
        if self.how != "stubborn":
            self.reset()
            self.moved |= {name: each.clone() for name, each in state["affine"].items()}

    def fork(self):
        return type(self)(self.model, self.how, self.far)


@pytest.mark.parametrize("how", ["ordinary", "stubborn", "sparing"])
@pytest.mark.parametrize("far", [0.1, 5.0, math.inf, math.nan])
@settings(max_examples=10, deadline=None)
@given(envelope=envelopes, sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_a_method_of_ones_own_is_kept_inside(how, far, envelope, sizes):
    """It knows of no envelope; one that will not take up what it is given is reset."""
    method = Enveloped(OwnMethod("tests:Leaping", MODEL, Leaping(MODEL, how, far)), envelope)
    for number, count in enumerate(sizes):
        if number == 3:
            state, method = method.state(), method.fork()
            method.restore(state)
        method.adapt(method.predict(images_of("noise", count, number)))
        assert_inside(method, envelope)
    if far > 1 and envelope.drift < 0.1 and envelope.steps_per_1000_images == 1000:
        assert method.verdicts.told
    before = method.verdicts
    method.end()  # nothing waits, so nothing is dropped
    assert method.verdicts == before


def test_a_class_derived_from_ours_is_kept_inside_too():
    """Its own ledger, and that around it, stand in one state."""
    envelope = Envelope.of({"drift": 0.001})
    inner = create("tent", MODEL, lr=1.0)
    method = Enveloped(OwnMethod("tests:Derived", MODEL, inner), envelope)
    walk(method, batches(3))
    assert_inside(method, envelope)
    state = method.state()
    assert {"envelope", "own.envelope"} <= state.keys()
    again = method.fork()
    again.restore(state)
    assert again.verdicts == method.verdicts
    assert same(again.state(), state)


def test_evidence_of_harm_may_get_as_far_as_the_envelope_says():
    """From there on the source answers; and one image may raise it by the factor that it says."""
    met = {}
    for bound in (1.5, 5.0, 50.0):
        watch, turn, count = Watch(), None, 0
        envelope = Envelope.of({"worse_than_source": bound})
        while turn is None:
            watch, turn = watch.after(0.9, at=count, false_alarms=0.01, envelope=envelope)
            count += 1
        assert turn.what == SUSPECT
        assert turn.evidence.wealth >= bound
        met[bound] = count
    assert met[1.5] < met[5.0] < met[50.0]
    evidence = Evidence()
    for _ in range(50):
        evidence = evidence.after(0.5)
    for factor in (1.1, 1.75):
        assert evidence.after(1.0, factor=factor).wealth <= factor * evidence.wealth


def test_where_the_source_must_not_answer_nothing_is_learned_beyond():
    """guard.hold=false: batches are dropped while there is more evidence than allowed."""
    case = ttc_stream(guard="on", watching={"guard.hold": False})
    method = create(case.name, MODEL, envelope=BUILT_IN, **case.settings)
    walk(method, batches(2))
    guarded = method.inner
    guarded._watch = Watch(suspected=True)
    before = method.version
    walk(method, batches(1))
    assert method.verdicts.dropped == {"worse_than_source": 1}
    assert method.version == before
    again = method.fork()
    again.restore(method.state())
    assert again.verdicts == method.verdicts


def test_streams_share_the_limits_of_their_network():
    """A thousand cameras hold a ledger each, and no tensors for it."""
    method = create("ttc_stream", MODEL, envelope=Envelope.of({"parameters": ["norm1.*"]}))
    assert method.fork()._limits is method._limits


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"drft": 1.0}, r"'drft' is no clause of an envelope; the clauses are: parameters, drift,"),
        ({"drift": -1.0}, r"drift = -1.0 is not accepted: accepted is a number of 0 or more"),
        ({"drift": "1"}, r"drift = '1' is not accepted: accepted is a number of 0 or more"),
        ({"drift": math.inf}, r"drift = inf is not accepted: accepted is a finite number"),
        ({"drift": True}, r"drift = true is not accepted"),
        ({"image_in_step": 0.0}, r"image_in_step = 0.0 is not accepted"),
        ({"steps_per_1000_images": 1001}, r"steps_per_1000_images = 1001 is not accepted"),
        ({"steps_per_1000_images": 1.5}, r"steps_per_1000_images = 1.5 is not accepted"),
        ({"parameters": "norm1"}, r"parameters = 'norm1' is not accepted: accepted is a list of"),
        ({"parameters": [""]}, r"parameters = .* a pattern has 1 to"),
        ({"drift": -1.0, "drft": 1, "largest": 2}, r"\n'drft', 'largest' are no clauses"),
        ({"worse_than_source": 0.5}, r"worse_than_source = 0.5 is not accepted"),
        ({"image_in_evidence": 2.0}, r"image_in_evidence = 2.0 is not accepted"),
    ],
)
def test_what_no_envelope_says_is_refused_with_a_sentence(given, said):
    with pytest.raises(ValueError, match=said):
        Envelope.of(given)


def test_what_is_left_out_is_as_built_in_and_a_digest_tells_envelopes_apart():
    assert Envelope.of({}) == BUILT_IN != UNBOUNDED
    assert Envelope.of({"drift": 0.5}).largest_change == BUILT_IN.largest_change
    assert Envelope.of({"drift": 1}).digest == Envelope.of({"drift": 1.0}).digest
    assert len({Envelope.of({"drift": each}).digest for each in (0.0, 0.1, 0.2)}) == 3
    for same_patterns in ([["a", "b"], ["b", "a", "b"]], [["*"], ["norm1.*", "*"]]):
        assert len({Envelope.of({"parameters": each}).digest for each in same_patterns}) == 1
