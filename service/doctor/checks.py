"""Every check by its code: what it looks at, what a finding means, and what to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from ttc_core.errors import UserError, shown

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """Something that is looked at: T1 the installation, T2 the model, T3 its data, T4 methods."""

    code: str
    title: str
    explanation: str


@dataclass(frozen=True)
class Finding:
    """What was found by one check: in a sentence, and the numbers by name for machines."""

    code: str
    verdict: Verdict
    sentence: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.code in CHECKS

    @property
    def title(self) -> str:
        return CHECKS[self.code].title


class UnknownCodeError(UserError):
    """No check has this code; the text names near ones."""


def find_check(code: str) -> Check:
    """The check of a code, in small letters too.

    Raises:
        UnknownCodeError: there is none.
    """
    if (check := CHECKS.get(code.strip().upper())) is not None:
        return check
    near = get_close_matches(code.strip().upper(), CHECKS, n=3, cutoff=0.5)
    meant = f"near it are {', '.join(near)}; " if near else ""
    raise UnknownCodeError(f"{shown(code)} is no check's code; {meant}ttc explain lists them all.")


CHECKS: dict[str, Check] = {
    check.code: check
    for check in (
        Check(
            "T101",
            "versions",
            "What is installed: answers may differ between versions of torch in their last digits. "
            "Nothing to do; name them when you report something.",
        ),
        Check(
            "T102",
            "torchvision beside torch",
            "torchvision is built for one version of torch and fails with another. Only models "
            "torchvision/NAME need it. Install a pair that matches: pip install --upgrade torch "
            "torchvision, both from the same index.",
        ),
        Check(
            "T103",
            "device and threads",
            "Where the network would run: --device auto takes a GPU where torch sees one. A device "
            "that is not there is a problem: leave --device out, or install a torch that was built "
            "for it (torch.cuda.is_available() says whether it was). --threads N bounds torch's "
            "threads on the CPU; beside other work fewer than the cores are often faster.",
        ),
        Check(
            "T104",
            "bundled model at work",
            "The bundled model answers the first images that come with the package; its accuracy "
            "over all of them is known. More than six points away means that this installation "
            "computes wrongly: another torch, another device, or a damaged file. It is left out "
            "where options feed the model otherwise than it was trained.",
        ),
        Check(
            "T105",
            "bfloat16 on this device",
            "How long the model takes in bfloat16, as a share of its time in float32. Devices with "
            "units for it are faster, others slower; where it learns as well less is gained. "
            "--precision bfloat16 turns it on; answers are rounded, what lasts stays float32.",
        ),
        Check(
            "T201",
            "the model loads",
            "The spec, the file and the network fit one another, and there is something to adapt. "
            "A problem says which does not: a file that is missing, of another network (the keys "
            "or shapes that differ are named), a whole pickled model (save model.state_dict() "
            "instead), or a network without BatchNorm, LayerNorm, GroupNorm or RMSNorm layers "
            "with scale and shift. That one can be served frozen: torch.jit.save or "
            "torch.export.save it, and --model torchscript@FILE --trust-code.",
        ),
        Check(
            "T202",
            "input",
            "The size to which images are brought, how, and the mean and deviation by which values "
            "in [0, 1] are normalised, with where each comes from. It has to be as the network was "
            "trained: --size, --crop, --interpolation, --mean and --std say otherwise. With --data "
            "T303 finds out about the normalisation.",
        ),
        Check(
            "T203",
            "head and classes",
            "The split of the network into features and head, found by tracing the layer whose "
            "output is the logits, and the number and names of classes. Without names answers are "
            "0, 1, …: --class-names FILE states them, in the order of training (for "
            "ImageFolder: its class_to_idx).",
        ),
        Check(
            "T204",
            "layers that adapt",
            "Only scales and shifts of normalisation layers are learned, and BatchNorm layers "
            "follow the stream's statistics, too. A note where there is no BatchNorm with running "
            "statistics: methods that need it (norm) refuse the network, and less is gained; or "
            "where nothing adapts, since it is a program (TorchScript, torch.export).",
        ),
        Check(
            "T205",
            "what was chosen for you",
            "What loading had to decide: keys of the file that were left out, names that do not "
            "fit, a size that was tried out. Each sentence says how to decide otherwise.",
        ),
        Check(
            "T206",
            "time of an answer",
            "The shortest of some forward passes of the frozen network, by batch: the least that "
            "an answer takes here. The default looks at an image twice, and learns after it has "
            "answered: three to six times as much work. More an image in larger batches is "
            "no use of --max-batch.",
        ),
        Check(
            "T207",
            "memory of a stream",
            "What each stream that adapts keeps for itself with the default method, the good "
            "states that its guard may go back to left out. --max-stream-bytes and --max-streams "
            "bound them; those that are idle longest make room, and with --state-dir come back.",
        ),
        Check(
            "T208",
            "lone images and shared passes",
            "A network that drops the axis of one image fails on a lone one: send two at least. "
            "Where a row's answer depends on its neighbours, streams cannot share a pass and run "
            "one after another, which is slower with many.",
        ),
        Check(
            "T301",
            "the data",
            "Labelled images as the model should answer them, folder:DIR with a folder for each "
            "class, named like the model's classes or by their index. A random part of at most "
            "--images is looked at. A problem says what cannot be read or does not match; a note "
            "where images are few, or of one class only: then the numbers below say little.",
        ),
        Check(
            "T302",
            "clean accuracy",
            "The share of images that the frozen network gets right, with its standard error, by "
            "the normalisation that T303 found to be right. A problem where it is no better than "
            "guessing, or gives one class to nearly all: another model, other classes, or images "
            "of another kind. Look at T303 and T304 first. Less than you measured after training, "
            "with those in order: size, crop or interpolation (T202) are others, which nothing "
            "here finds out.",
        ),
        Check(
            "T303",
            "normalisation",
            "The commonest mistake. The usual ones are tried: as stated; values in [0, 1] as they "
            "are; ImageNet's mean and deviation; 0.5 and 0.5; CIFAR's; values of 0 to 255; each "
            "with the channels as BGR, too. A problem where another one has more images right "
            "than the stated one, by five points and by three standard errors of the "
            "difference, image by image: state it by --mean and --std, as the command at the end "
            "does. BGR cannot be stated: let a factory of your own "
            "(package.module:factory) return the network behind x.flip(1). What a factory's "
            "SourceModel states is mended there. Else the checks after it go by the normalisation "
            "that was found.",
        ),
        Check(
            "T304",
            "order of the classes",
            "Whether the answers would be right if classes were called otherwise: the best "
            "assignment of answers to labels is found on one half of the images and tried on the "
            "other. A problem where that is plainly better: the folders, or the names of "
            "--class-names, are in another order than in training (sorted by name, or 10 before "
            "2). State the order of training.",
        ),
        Check(
            "T305",
            "mirrored images",
            "TTC and the default average the answers to an image and to its mirror image, which "
            "is right where both mean the same. Digits, text and arrows do not: the answers "
            "differ, or are less right. The default finds out by itself after some images; "
            "--set ttc_stream.second_view=off spares it that. ttc is no method for such data.",
        ),
        Check(
            "T401",
            "what each method brings",
            "Each method, as a server would run it and with --guard on, on a quarter of the images "
            "(50 at least, where there are as many), ten at a time: under three corruptions at "
            "severity 5, shuffled, and clean in their natural order, that of the files. Numbers "
            "are accuracy, and the difference from the frozen network's, image by image, with its "
            "standard error. More images (--images) make errors smaller.",
        ),
        Check(
            "T402",
            "recommendation",
            "The command to start with. Of the methods that are below the frozen network in none "
            "of the four streams by more than two standard errors, the one with the best mean is "
            "taken if that mean is above the frozen network's by more than two; the default "
            "stays where the best is not better than it by more than two. Else nothing is "
            "gained by adapting, and the frozen network is recommended. Where a problem is left "
            "that no option mends, no method is tried. Three corruptions of a "
            "few images are no promise: ttc evaluate with your own data says more.",
        ),
    )
}
"""By code, in ascending order."""
