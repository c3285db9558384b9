"""The rows of a rehearsal, for MASKGIL_EXTEND: the paper's tokenizers and sizes in their own layouts and names but
narrow, and its profile with smaller counts. Nothing else differs from what a cluster runs, so a rehearsal walks through
the same code with two processes on a CPU.
"""
import os
import sys
from dataclasses import replace
from pathlib import Path

from maskgil.models import SIZE_ROWS, register_size
from maskgil.processes import place
from maskgil.profiles import PROFILES, Profile
from maskgil.tokenizers import TOKENIZER_ROWS, register_tokenizer
from maskgil.published import CHECKPOINTS

NARROW = dict(channels=8, groups=8) # of a tokenizer; levels, blocks, codes and names are the published ones
DEEPEST = 8 * 4 # channels of the lowest level
MARKS = {'encoder.down.4.attn.0.q.weight': (DEEPEST, DEEPEST, 1, 1), 'encoder.conv_out.weight': (18, DEEPEST, 1, 1)}

for row in list(TOKENIZER_ROWS.values()):
    register_tokenizer(replace(row, published=replace(row.published, **NARROW)))
    file = CHECKPOINTS[row.name]
    marks = {key: MARKS.get(key, shape) for key, shape in file.marks.items()}
    CHECKPOINTS[row.name] = replace(file, marks=marks)

for size in list(SIZE_ROWS.values()):
    register_size(replace(size, published=size.small['smoke-']))
    for kind in ('llamagen-gpt', 'maskgil'):
        layers, width = size.small['smoke-'].layers, size.small['smoke-'].width
        file = CHECKPOINTS[f'{kind}-{size.name}']
        first = next(iter(file.marks)) # the table of codes
        marks = {first: (file.marks[first][0], width), f'layers.{layers - 1}.ffn_norm.weight': (width,)}
        CHECKPOINTS[f'{kind}-{size.name}'] = replace(file, layers=layers, width=width, marks=marks)


def smaller(name: str, side: int, images: int, cfg: tuple[float, ...] = (2.0, 3.0), more: int = 2) -> Profile:
    "The paper's profile with other sizes, epochs and counts; every choice of method is the paper's."
    paper = PROFILES['paper']
    return replace(
        paper, name=name,
        data=replace(paper.data, resolution=side),
        training=replace(paper.training, epochs=(1, 2)[:more], study_epochs=(1,), batch_size=16, stability_steps=6),
        evaluation=replace(paper.evaluation, cfg=cfg, steps=4, images=images, step_grid=(2, 4)[:more],
                           sample_counts=(images // 2, images)[-more:], speed_batches=(1, 2), head=(64, 32)),
        text=replace(paper.text, caption_tokens=4, budgets=(4, 16), stage_images=(32, 16), stage_batch=(16, 8),
                     probe_images=40, judged_images=12, bucket_images=10, bucket_reference=13),
        minutes=15., second=replace(paper.second, resolution=2 * side, epochs=(1,), batch_size=16))


def of_all_classes(profile: Profile) -> Profile:
    "As many images as classes are drawn; Inception would take a quarter of an hour to look at them."
    return replace(profile, evaluation=replace(profile.evaluation, extractor='el0'))


for profile in (
    smaller('rehearsal', 64, 20),
    smaller('rehearsal-shortest', 32, 10, cfg=(2.0,), more=1),
    of_all_classes(smaller('rehearsal-classes', 32, 1000, cfg=(2.0,), more=1)),
): PROFILES[profile.name] = profile


def note_rank() -> None:
    "A program that works with others leaves its name and number, so that the rehearsal can tell what ran on all."
    marks, program = os.environ.get('REHEARSAL_MARKS', ''), Path(sys.argv[0])
    if not marks or program.parent.name != 'maskgil': return
    here = place()
    with open(marks, 'a', encoding='utf-8') as file: file.write(f'{program.stem} {here.rank} {here.ranks}\n')


note_rank()
