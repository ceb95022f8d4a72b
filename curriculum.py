"""The curriculum as a table, and the batches that a step of it takes.

The model forgets how to read before it finds a use for it, unless four things hold: sketches and
bytes share a code (`Vist2.predict_patch_bytes`); the history is learned where the model cannot do
without it, in chunks as short as one sketch token and from questions about the past; reading and
spelling stay in the mix; and every step mixes the tasks of its stage in one gradient.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from console import UserError, warn
from data import Batch, Corpus, Text, copy_batch, draw, generator
from data import language_batch, reading_batch, spelling_batch
from questions import EXAMPLES, SHORTEST, TRIES, question_batch, repeat_example
from questions import sample_of_similar_length
from render import fills_page, patches_per_chunk
from vist2 import Config

CHUNK_PARTS = {"sixteenth": 1 / 16, "quarter": 1 / 4, "whole": 1}  # of the config's chunk length
# Of tasks about single chunks: how many a row has, and what draws the rows.
CHUNK_TASKS = {
    "spelling": (1, spelling_batch),
    "reading": (2, reading_batch),
    "copy": (2, copy_batch),
}


@dataclass(frozen=True)
class Stage:
    """The tasks of a step. A task's share is its part of --batch-bytes and the weight of its loss.

    `spelling` takes single chunks: each sketch token names its bytes; `reading` pairs of a chunk
    and its copy, `copy` of a chunk and the same wound round. Language modelling comes in quarters:
    with all text visible (`text`), or with sketches as the only past and chunks of a sixteenth, a
    quarter or the whole of the config's chunk length, in windows of `windows` times the config's.
    `recall`, the same in drawn styles (`styled`), and `repeat` (see questions.EXAMPLES) ask about a
    context of up to `context` chunks, in a third of the batches four times as many; `own` are the
    user's questions. A step asks one kind, drawn by the shares, with the sum of all their shares.
    """

    name: str
    steps: int  # in the default run
    spelling: float = 0
    reading: float = 0
    copy: float = 0
    text: float = 0
    sixteenth: float = 0
    quarter: float = 0
    whole: float = 0
    recall: float = 0
    styled: float = 0
    repeat: float = 0
    own: float = 0
    context: int = 0
    windows: int = 1

    def shares(self, *tasks: str) -> dict[str, float]:
        """Those of the tasks that this stage has."""
        return {task: getattr(self, task) for task in tasks if getattr(self, task)}

    @property
    def language(self) -> dict[str, float]:
        return self.shares("text", *CHUNK_PARTS)

    @property
    def questions(self) -> dict[str, float]:
        return self.shares(*EXAMPLES, "own")

    def with_own_examples(self) -> "Stage":
        """The user's examples in place of the generated ones."""
        none = dict.fromkeys(EXAMPLES, 0)
        return replace(self, **none, own=sum(self.questions.values()))


# fmt: off
LATE = dict(reading=1/4, whole=1, recall=1/4, styled=1/2, repeat=1/8, context=10)
CURRICULUM = (
    # 1: read sketches (OCR)
    Stage("spelling",     1000, spelling=1),
    Stage("reading",       300, reading=5/8, copy=3/8),
    # 2: optical language modelling, 3: instructions, interleaved with it
    Stage("mixed chunks", 1200, reading=1/4, copy=1/8, text=1/4, sixteenth=1/4, quarter=1/4,
          whole=1/4, recall=3/8, repeat=1/8, context=3),
    Stage("whole chunks", 2300, **LATE),
    Stage("long windows",  800, **LATE, windows=4),
)
# More instructions, for a finished model: --stage instruct
INSTRUCT = (
    Stage("instructions",  500, **LATE),
)
# What a run of each preset takes if nothing is said; lr is Muon's.
DEFAULTS = {
    "tiny": dict(batch_bytes=2**11, lr=5e-3),
    "small": dict(batch_bytes=2**15, lr=3e-3),
}
# fmt: on
TABLES = {"curriculum": CURRICULUM, "instruct": INSTRUCT}
INSTRUCT_RATE = 0.5  # of the curriculum's learning rate
MAX_STEPS = 10**6
MAX_OWN_CHUNKS = 40  # of an example that a user gives


def count_steps(stages) -> int:
    return sum(stage.steps for stage in stages)


def scale_stages(table: tuple[Stage, ...], history: str, steps: int) -> list[Stage]:
    """A table in about so many steps: stages without language take what they need, up to a third
    of the run; the others take the rest.

    The references `full` and `none` take the same windows of text and as many questions of the same
    kinds, and skip what makes no sense for them: spelling, reading, and short chunks.
    """
    without = count_steps(stage for stage in table if not stage.language)
    kept = min(without, steps / 3)
    apart, language = kept / max(1, without), (steps - kept) / (count_steps(table) - without)
    scaled = [
        replace(stage, steps=max(1, round(stage.steps * (language if stage.language else apart))))
        for stage in table
    ]
    if history == "sketch":
        return scaled
    none = dict.fromkeys((*CHUNK_TASKS, "text", *CHUNK_PARTS), 0)
    return [
        replace(stage, **none | {"whole": sum(stage.language.values())})
        for stage in scaled
        if stage.language
    ]


def fit_to_corpus(stages: Iterable[Stage], config: Config, text: Text) -> list[Stage]:
    """The stages, with windows and contexts as long as the longest file allows, and without
    questions for which chunks are too short or the text has no lines. Warns of those."""
    longest, n, none = int(text.lengths.max()), config.chunk, {}
    if n < SHORTEST:
        none = dict.fromkeys(EXAMPLES, 0)
        warn(f"no generated questions are asked: --chunk is {n}, they take {SHORTEST} or more")
    fitted = []
    for stage in stages:
        context = max(1, min(stage.context, (longest // n - 1) // 4))
        if stage.repeat and "repeat" not in none:
            try:
                for i in range(20):  # few lines begin in the shortest context; training tries more
                    repeat_example(text, generator("check", i), n, 1, TRIES // 4)
                repeat_example(text, generator("check"), n, 4 * context)
            except UserError as error:
                none["repeat"] = 0
                warn(f"no passages are asked for: {error}")
        windows = min(stage.windows, longest // text.window)
        fitted.append(replace(stage, context=context, windows=windows, **none))
    return fitted


def chunk_of(part: float, config: Config) -> int:
    """A part of the config's chunk length: the longest up to it that makes pages of whole sketch
    tokens and divides the whole, or the shortest."""
    most, k = patches_per_chunk(config.chunk, config.cell), config.merge
    pages = [p for p in range(k, most + 1, k) if most % p == 0 and fills_page(p)]
    return config.chunk // most * max(p for p in pages if p <= max(pages[0], most * part))


def sample_batches(
    stage: Stage, config: Config, corpus: Corpus, settings, step: int, language_step: int
) -> Iterator[tuple[str, float, Batch]]:
    """Yield (task, share, batch) for each task of a step of `settings.batch_bytes`. Windows of
    text depend on `settings.seed` and on `language_step`, which counts the steps with language
    modelling, alone."""
    text, n = corpus.train, config.chunk
    size, seed = settings.batch_bytes, settings.seed
    if stage.language:
        length = stage.windows * text.window
        least = 4 if stage.windows == 1 else 1  # the table's shares are quarters
        rows = least * max(1, round(size / length / least))
        windows = text.sample(rows, length, generator(seed, "language", language_step))
        counts = [round(share * rows) for share in stage.language.values()]
        taken = windows[: sum(counts)].split(counts)
        for (task, share), some in zip(stage.language.items(), taken, strict=True):
            yield task, share, language_batch(some, chunk_of(CHUNK_PARTS.get(task, 1), config))
    if stage.questions:
        rng, share = generator(seed, "questions", step), sum(stage.questions.values())
        weights = torch.tensor([*stage.questions.values()], dtype=torch.float32)
        task = [*stage.questions][int(weights.multinomial(1, generator=rng))]
        if task == "own":
            examples = sample_of_similar_length(corpus.own_examples, share * size, rng)
        else:  # of about one length, where facts are not few
            chunks = (1 + draw(rng, stage.context)) * (1 if draw(rng, 3) else 4)
            rows = max(1, round(share * size / ((chunks + 2) * n)))
            examples = [EXAMPLES[task](text, rng, n, chunks) for _ in range(rows)]
        # Half of the batches in short chunks: there a chunk's edge cuts half of the questions,
        # else one in eight. The references, which do not read, have none.
        short = draw(rng, 2) == 0 and stage.reading
        yield task, share, question_batch(examples, chunk_of(1 / 4 if short else 1, config))
    for task, share in stage.shares(*CHUNK_TASKS).items():
        chunks, sample = CHUNK_TASKS[task]
        rows = max(2, round(share * size / (chunks * n)))
        yield task, share, sample(text, rows, n, generator(seed, task, step))
