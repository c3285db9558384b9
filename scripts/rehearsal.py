"""Walk through every study of the paper's profile on a stand-in for ImageNet that is made on the spot: two processes on
a CPU, checkpoint files in the published layouts filled with synthetic weights, FID with the layout of Inception. What
is learned is worthless; that every step from class folders to the report runs is what is looked at.

    python scripts/rehearsal.py [--shortest]
"""
import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator
from unittest.mock import patch

os.environ['OMP_NUM_THREADS'] = '1' # there are as many processes as cores
os.environ['MASKGIL_EXTEND'] = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'rehearsal_rows.py')

import numpy as np
import torch
from PIL import Image

from maskgil.checkpoints import synthetic_weights
from maskgil.checks import ParameterError, check_parameters, study_declarations
from maskgil.core import cache_dir, read_json, shown
from maskgil.evaluation import npz_layout
from maskgil.external import write_small_gemma, write_small_lumina
from maskgil.features import INCEPTION_FILE, extract, write_synthetic_inception
from maskgil.metrics import mean_and_covariance
from maskgil.models import build_model, model_config
from maskgil.profiles import override, PROFILES
from maskgil.records import Record, null_metrics, records, wrong_files
from maskgil.reproduce import CellProcess, job_name, start, stop
from maskgil.shards import open_images
from maskgil.studies import STUDIES, given_settings, study_notebook # with the rows of the rehearsal
from maskgil.tokenizers import TOKENIZER_ROWS, Tokenizer, TOKENIZERS
from maskgil.published import CHECKPOINTS, LAYOUTS
from maskgil.weights import only_shapes

ROOT = Path(__file__).resolve().parent.parent
PROFILE = dict(whole='rehearsal', shortest='rehearsal-shortest')


# A stand-in for ImageNet

def picture(kind: int, number: int) -> np.ndarray: # (h w 3) uint8
    "A pattern that tells its class, of a size of its own."
    rng = np.random.default_rng((kind, number))
    height, width = rng.integers(66, 110, 2)
    y, x = np.mgrid[:height, :width] / 16
    across, down = 1 + kind % 5, 1 + kind // 5 % 5
    waves = [np.sin(across * x + phase) * np.cos(down * y - phase) for phase in rng.random(3) * 3]
    pixels = 128 + 80 * np.stack(waves, 2) + rng.normal(0, 12, (height, width, 3)) + (kind * 37 % 64 - 32)
    return pixels.clip(0, 255).astype(np.uint8)


def save_picture(path: Path, kind: int, number: int) -> None:
    "As in ILSVRC: mostly RGB, some grey, a few CMYK, and one PNG that is called .JPEG."
    path.parent.mkdir(parents=True, exist_ok=True)
    image, odd = Image.fromarray(picture(kind, number)), (7 * kind + number) % 23
    if odd in (3, 5): image = image.convert('L' if odd == 3 else 'CMYK')
    image.save(path, 'PNG' if (kind, number) == (1, 1) else 'JPEG')


def wnid(kind: int) -> str: return f'n{1440764 + 97 * kind:08}'


def write_images(folder: Path, classes: int, train: int, val: int, flat: bool = False) -> Path:
    "Class folders as the download unpacks to them; `flat` leaves the validation images in one folder, as it has them."
    for kind in range(classes):
        for i in range(train): save_picture(folder/'train'/wnid(kind)/f'{wnid(kind)}_{i}.JPEG', kind, i)
        for i in range(val):
            name = f'ILSVRC2012_val_{classes * i + kind + 1:08}.JPEG'
            save_picture(folder/'val'/name if flat else folder/'val'/wnid(kind)/name, kind, 1000 + i)
    return folder


SHAPES = ((64, 64), (96, 44), (44, 96), (128, 32), (32, 128)) # height, width

def write_captions(folder: Path, each: int, shapes: tuple[tuple[int, int], ...] = SHAPES) -> Path:
    "Pictures of several shapes, each with a text beside it."
    folder.mkdir(parents=True)
    things, colours = ('cat', 'dog', 'flag'), ('red', 'blue')
    for number in range(each * len(shapes)):
        height, width = shapes[number % len(shapes)]
        pixels = picture(number % 6, number)
        Image.fromarray(pixels).resize((width, height)).save(folder/f'{number:04}.jpg')
        words = f'the {colours[number % 2]} {things[number % 3]} a {colours[number // 3 % 2]} {things[number // 6 % 3]}'
        (folder/f'{number:04}.txt').write_text(f'{words} {number}')
    return folder


# Published files

def published_keys(system: str, native: dict[str, Any]) -> dict[str, tuple[list[int], str]]: # native: by our names
    "The keys of a published file with the shapes of a narrow network."
    layout, keys = LAYOUTS[CHECKPOINTS[system].layout], {}
    for key, (shape, dtype) in read_json(ROOT/'tests'/'goldens'/f'{system}.keys.json').items():
        ours = layout.native_name(key)
        if ours in native: keys[key] = (list(native[ours].shape), dtype)
        elif layout.drops(key): keys[key] = (shape, dtype)
    return keys


def write_published(folder: Path, system: str) -> Path:
    "One file as it is published, with weights that depend on the names alone."
    row = CHECKPOINTS[system]
    with only_shapes():
        network: Any = (Tokenizer(TOKENIZERS[system], system) if row.kind == 'tokenizer' else
                        build_model(model_config(row.kind, row.size, classes=1000)))
    state = synthetic_weights(published_keys(system, network.state_dict()))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({row.nested: state, 'epoch': 1} if row.nested else state, folder/f'{system}.pt')
    return folder/f'{system}.pt'


def write_adm(folder: Path, data: Path, side: int, images: int, *held: str, name: str = '') -> Path:
    "ADM's file: pictures (arr_0), and the mean and the covariance of what Inception sees in them, or one of both."
    real = open_images(str(data), 'train', side, images)
    pixels = real.batch(range(len(real)))
    kept = dict(arr_0=pixels.permute(0, 2, 3, 1).numpy()) if 'arr_0' in held else {}
    if 'mu' in held: kept |= zip(('mu', 'sigma'), mean_and_covariance(extract(pixels, 'inception').features))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder/(name or PROFILES['paper'].evaluation.adm_reference), **kept)
    return folder


# What is run

@dataclass
class Part:
    "One run of a study's notebook."
    study: str
    arguments: dict[str, Any] = field(default_factory=dict)
    profile: str = '' # another than the form's
    data: str = 'imagenet' # a folder of the rehearsal
    adm: str = 'adm-statistics' # the folder with ADM's file
    programs: tuple[str, ...] = ('jobs', 'evaluation') # that have to work on all ranks
    wall: float = 0.

    @property
    def name(self) -> str:
        short = {k: Path(v).name if isinstance(v, Path) else v for k, v in self.arguments.items()}
        return job_name((self.study, short)) + (f' in {self.data}' if self.data != 'imagenet' else '')


ENCODING = ('shards', 'jobs', 'evaluation') # of a part whose tokens no other one has made

def shortest_parts() -> list[Part]:
    return [Part('scaling', dict(size='b'), programs=ENCODING),
            Part('tokenizers', dict(tokenizer='llamagen-vq', architecture='causal LLaMA')),
            Part('steps', dict(size='b')),
            Part('fusion', dict(size='b'))]


def first_parts() -> list[Part]:
    "What others begin with: a trained B, and the tokens of two data sets."
    return [
        Part('scaling', dict(size='b'), adm='adm', programs=ENCODING),
        Part('scaling', dict(size='b'), 'rehearsal-classes', 'imagenet-classes', 'adm-images', ENCODING),
        Part('stability', {}, 'rehearsal-classes', 'imagenet-classes', programs=('jobs',)),
    ]


def other_parts(folder: Path) -> list[Part]: # the longest first
    text = dict(data=folder/'captions', encoder=folder/'gemma')
    fewer: dict[str, Any] = dict(epochs=1, cfg=2.0)
    one = dict(architecture='bidirectional LLaMA', cfg=2.0)
    of_classes = ('rehearsal-classes', 'imagenet-classes', 'adm-images')
    return [
        Part('fusion', dict(size='l')),
        *([Part('protocol', dict(checkpoint=folder/'pipeline'), programs=())] if (folder/'pipeline').exists() else []),
        Part('steps'),
        Part('text_to_image', text, programs=('jobs',)),
        Part('text_to_image', text | dict(fusion='lumina', lumina=folder/'lumina'), programs=('jobs', 'text_study')),
        Part('departures', dict(cfg=2.0)),
        *(Part('tokenizers', dict(tokenizer=name) | (dict(cfg=2.0) if name == 'open-magvit2-vq' else one),
               programs=('jobs',) if name == 'llamagen-vq' else ENCODING) # departures has its tokens and samples
          for name in reversed(TOKENIZER_ROWS)),
        Part('scaling', dict(size='b', stage='512') | fewer, programs=ENCODING),
        Part('fusion', dict(size='b', ar='published'), *of_classes, programs=('evaluation',)),
        *(Part('scaling', dict(size=size) | fewer) for size in ('l', 'xl', 'xxl')),
        Part('scaling', dict(size='b', recipe='released') | fewer),
        Part('scaling', dict(size='b') | fewer, data='imagenet-flat', programs=ENCODING),
        Part('paradigms', programs=()),
    ]


@contextlib.contextmanager
def environment(**variables: Any) -> Iterator[None]:
    "Variables for what is started inside."
    with patch.dict(os.environ, {name: str(value) for name, value in variables.items()}): yield


def prepare(folder: Path, form: str) -> None:
    "Images, captions and files."
    whole, statistics = form == 'whole', folder/'adm-statistics'
    side = PROFILES[PROFILE[form]].data.resolution
    data = write_images(folder/'imagenet', *((10, 5, 2) if whole else (5, 5, 3)))
    for system in (*(TOKENIZER_ROWS if whole else ['llamagen-vq']), *(['llamagen-gpt-b'] if whole else [])):
        write_published(folder/'checkpoints', system)
    os.environ['MASKGIL_INCEPTION'] = str(write_synthetic_inception(folder/INCEPTION_FILE))
    write_adm(statistics, data, side, 20, 'mu') # no division of real images in two: that takes a minute each time
    if form == 'shortest': return with_checkpoints(folder)
    second = PROFILES[PROFILE[form]].second
    write_adm(statistics, data, second.resolution, 20, 'mu', name=second.adm_reference)
    write_adm(folder/'adm', data, side, 24, 'arr_0', 'mu')
    write_images(folder/'imagenet-flat', 10, 5, 2, flat=True)
    classes = write_images(folder/'imagenet-classes', 1000, 1, 1)
    write_adm(folder/'adm-images', classes, PROFILES['rehearsal-classes'].data.resolution, 140, 'arr_0')
    with_checkpoints(folder)
    write_captions(folder/'captions', 60)
    write_small_gemma(folder/'gemma')
    write_small_lumina(folder/'lumina', TOKENIZERS['chameleon-vq'].codebook_size)


def with_checkpoints(folder: Path) -> None:
    "Put the published files beside each of ADM's."
    for adm in folder.glob('adm*'):
        for file in (folder/'checkpoints').iterdir(): (adm/file.name).symlink_to(file)


def undeclared(part: Part) -> str: # one line; '' where the notebook takes all of them
    "What keeps a notebook from taking a part's arguments."
    given = {k: str(v) for k, v in part.arguments.items()}
    try: check_parameters(given, study_declarations(study_notebook(part.study)))
    except ParameterError as error: return str(error).partition(':')[0]
    return ''


def run_parts(folder: Path, parts: list[Part], form: str, lanes: int) -> dict[str, list[str]]: # part -> faults
    "Start each part's notebook, so many at a time; what it ends with, and what did not run on all ranks."
    faults: dict[str, list[str]] = {part.name: list(filter(None, [undeclared(part)])) for part in parts}
    waiting, running = [part for part in parts if not faults[part.name]], []
    try:
        while waiting or running:
            if waiting and len(running) < lanes:
                running.append((part := waiting.pop(0), started(folder, part, form), time.monotonic()))
            for part, cell, began in [row for row in running if row[1].process.poll() is not None]:
                running.remove((part, cell, began))
                part.wall = time.monotonic() - began
                print(cell.report(), flush=True)
                faults[part.name] += how_it_ran(folder, part, cell)
            time.sleep(.2)
    finally: stop([cell for _, cell, _ in running])
    return faults


def marks_of(folder: Path, part: Part) -> Path:
    return folder/'marks'/part.name.replace(' ', '-').replace('/', '_')


def started(folder: Path, part: Part, form: str) -> CellProcess:
    "A part's notebook in a process of its own, with what surrounds it."
    marks_of(folder, part).parent.mkdir(exist_ok=True)
    with environment(MASKGIL_PROFILE=part.profile or PROFILE[form], IMAGENET=folder/part.data,
                     REHEARSAL_MARKS=marks_of(folder, part), MASKGIL_CHECKPOINTS=folder/part.adm):
        return start(part.study, part.arguments, 1)


def how_it_ran(folder: Path, part: Part, cell: CellProcess) -> list[str]: # faults
    "What a failed run said last; or which programs did not work on all ranks."
    if cell.process.returncode:
        lines = cell.log.read_text(errors='replace').strip().splitlines()
        return [lines[-1] if lines else 'ended without a word']
    marks = marks_of(folder, part)
    said = set(marks.read_text().splitlines()) if marks.exists() else set()
    return [f'{program} did not work on two processes' for program in part.programs
            if not {f'{program} 0 2', f'{program} 1 2'} <= said]


# What was made

def expected(part: Part, form: str) -> list[tuple[str, dict[str, Any]]]: # study and parameters of records
    "The cells that a part's arguments ask for."
    study, profile = STUDIES[part.study], PROFILES[part.profile or PROFILE[form]]
    given = {k: str(v) for k, v in part.arguments.items()}
    p = argparse.Namespace(**check_parameters(given, study_declarations(study_notebook(part.study))))
    at = study.at_stage(study.trained_with(profile), p)
    chosen = override(at, given_settings(study.settings, p))
    cells = {str(cell.parameters): cell for cell in study.grid(chosen, p)} # several may share a record
    return [(cell.study or part.study, cell.parameters) for cell in cells.values()]


def look_at_records(part: Part, form: str, found: list[Record]) -> list[str]: # faults
    "A record for each cell, with every number and every file."
    profile, faults = part.profile or PROFILE[form], []
    for study, parameters in expected(part, form):
        held = [r for r in found if (r.study, r.profile, r.parameters) == (study, profile, parameters)]
        what = ' '.join(map(str, parameters.values()))
        if not held: faults.append(f'no record of {what}')
        for record in held[-1:]:
            if lost := null_metrics(record): faults.append(f'{what}: not finite are {", ".join(lost[:3])}')
            faults += wrong_files(record)
            if not has_numbers(record.metrics): faults.append(f'{what}: a record without a number')
    return faults


def has_numbers(metrics: Any) -> bool:
    "Whether a record holds a metric."
    if isinstance(metrics, list): return any(map(has_numbers, metrics))
    return isinstance(metrics, dict) and ('value' in metrics or any(map(has_numbers, metrics.values())))


def command(folder: Path, name: str, *words: Any, **variables: Any) -> list[str]: # faults
    "Run a program to its end; what it says last, if it fails."
    log = folder/f'{name}.log'
    with environment(**variables), open(log, 'w') as out:
        done = subprocess.run([sys.executable, *map(str, words)], stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
    lines = log.read_text(errors='replace').strip().splitlines()
    said = [line for line in lines if line.startswith(('python -m', 'maskgil.', 'Error', 'ValueError'))] or lines[-1:]
    return [] if not done.returncode else [said[-1] if said else f'ended with {done.returncode}']


def draw_with_torchrun(folder: Path, form: str) -> list[str]: # faults
    "The trained B as a saved pipeline, and a set from it on two ranks into ADM's layout."
    profile, out = PROFILES[PROFILE[form]], folder/'drawn'
    count, side = profile.evaluation.images, profile.data.resolution
    faults = command(folder, 'publish', '-m', 'maskgil.cli', 'publish', '--size', 'b', '--out', folder/'pipeline',
                     '--profile', profile.name, '--data', folder/'imagenet', IMAGENET=folder/'imagenet')
    if faults: return faults
    faults = command(folder, 'evaluation', '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2, '-m',
                     'maskgil.evaluation', '--checkpoint', folder/'pipeline', '--out', out, '--count', count,
                     '--steps', profile.evaluation.steps, '--batch-size', 5, '--block', 5,
                     '--npz', folder/'drawn.npz')
    layout = npz_layout(folder/'drawn.npz') if (folder/'drawn.npz').exists() else {}
    shapes = {name: shape for name, (shape, _) in layout.items()}
    if not faults and shapes != dict(arr_0=(count, side, side, 3), arr_1=(count,)):
        faults = [f'drawn.npz holds {shapes}, and {count} images of {side} pixels were asked for']
    return faults


def look_at_report(folder: Path, form: str, parts: list[Part]) -> list[str]: # faults
    "The page with a column of the rehearsal for each study that left a record."
    faults = command(folder, 'report', '-m', 'maskgil.cli', 'report', '--profile', PROFILE[form])
    page = folder/'reports'/'yours'/'README.md'
    if faults or not page.exists(): return faults or ['no report was written']
    text = page.read_text()
    sections = {part.split('\n', 1)[0]: part for part in text.split('\n## ')}
    for name, second in dict.fromkeys((part.study, part.arguments.get('stage') == '512') for part in parts):
        without = 'Weak to strong: not run yet' if second else 'No run of yours yet'
        if without in sections.get(STUDIES[name].title, without):
            faults.append(f"the report shows no run of {name}{', second stage' if second else ''}")
    return faults


def forget_settings() -> None:
    "A rehearsal is the same on every machine, whatever is set there."
    set_here = [name for name in os.environ if name.startswith('MASKGIL_') and name != 'MASKGIL_EXTEND']
    for name in [*set_here, 'IMAGENET', 'HF_HOME']: os.environ.pop(name, None)
    os.environ['HF_HUB_OFFLINE'] = '1'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shortest', action='store_true', help='what CI runs: a few studies, three minutes')
    parser.add_argument('--folder', type=Path, help='for all that is made; it is emptied first')
    parser.add_argument('--only', nargs='*', default=[], help='parts whose name has one of these in it')
    parser.add_argument('--lanes', type=int, default=2, help='notebooks at a time')
    chosen, began = parser.parse_args(), time.monotonic()
    form = 'shortest' if chosen.shortest else 'whole'
    forget_settings()
    folder = (chosen.folder or cache_dir()/f'rehearsal-{form}').absolute()
    shutil.rmtree(folder, ignore_errors=True)
    (folder/'checkpoints').mkdir(parents=True)
    os.environ.update(
        MASKGIL_RESULTS=str(folder/'results'), MASKGIL_CACHE=str(folder/'cache'), MASKGIL_PROCESSES='2',
        MASKGIL_CHECKPOINTS=str(folder/'adm-statistics'), MASKGIL_PROGRESS='off', PYTHONPATH=f'{ROOT}')
    prepare(folder, form)
    print(f'made in {time.monotonic() - began:.0f} s: {shown(folder)}', flush=True)
    done: list[Part] = []

    def run_those(parts: list[Part]) -> dict[str, list[str]]: # part -> faults
        wanted = [part for part in parts if not chosen.only or any(word in part.name for word in chosen.only)]
        done.extend(wanted)
        return run_parts(folder, wanted, form, chosen.lanes)

    faults = run_those(shortest_parts() if form == 'shortest' else first_parts())
    if faults.get('scaling size=b') == []: # there is a model to draw from
        faults['ADM npz through torchrun'] = draw_with_torchrun(folder, form)
    if form == 'whole': faults |= run_those(other_parts(folder))
    found = records(sources=['yours'])
    for part in done:
        if not faults[part.name]: faults[part.name] += look_at_records(part, form, found)
    shown_parts = [part for part in done if not faults[part.name] and not part.profile]
    faults['report'] = look_at_report(folder, form, shown_parts)
    say(faults, {part.name: part.wall for part in done}, len(found), time.monotonic() - began, folder)
    if any(faults.values()): sys.exit(1)


def say(faults: dict[str, list[str]], walls: dict[str, float], found: int, seconds: float, folder: Path) -> None:
    "One line for each part that went well, and one for each fault."
    for name, lines in faults.items():
        took = f', {walls[name]:.0f} s' if walls.get(name) else ''
        if not lines: print(f'well   {name}{took}')
        for line in lines: print(f'FAULT  {name}: {line[:300]}')
    many = sum(map(len, faults.values()))
    print(f'{found} records, {many} faults, {seconds / 60:.1f} minutes; logs are in {shlex.quote(str(shown(folder)))}')


if __name__ == '__main__': main()
