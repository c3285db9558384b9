"A page in headless Chromium, driven over its debugging socket, and a server of files for it."
import base64, contextlib, functools, http.server, itertools, json, shutil, subprocess, tempfile, threading, time
import urllib.request
from pathlib import Path

import websocket

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
         '--hide-scrollbars', '--disable-background-networking', '--disable-component-update',
         '--remote-debugging-port=0')


class Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm'}

    def log_message(self, *arguments): pass


@contextlib.contextmanager
def served(folder: Path): # yields an address without a slash at its end
    "Files of a folder on the loopback address."
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()


class Page:
    "One tab: commands and their answers, and what happened meanwhile."
    def __init__(self, address: str):
        self.socket = websocket.create_connection(address, suppress_origin=True, timeout=120)
        self.numbers, self.events = itertools.count(1), []
        for domain in ('Page', 'Runtime', 'Network', 'Log'): self.send(f'{domain}.enable')

    def send(self, method: str, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps(dict(id=number, method=method, params=parameters)))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get('id') == number: break
            self.events.append(answer)
        if 'error' in answer: raise RuntimeError(f'{method}: {answer["error"]}')
        return answer['result']

    def run(self, script: str):
        "The value of an expression, or of what it promises."
        done = self.send('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if failed := done.get('exceptionDetails'):
            raise RuntimeError(failed.get('exception', {}).get('description') or failed['text'])
        return done['result'].get('value')

    def open(self, address: str):
        self.send('Page.navigate', url=address)
        self.until("document.readyState === 'complete'")

    def until(self, condition: str, seconds: float = 120):
        "Wait until an expression is true."
        end = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > end: raise TimeoutError(f'{condition}: {self.complaints()}')
            time.sleep(.05)

    def size(self, width: int, height: int, phone: bool = False):
        self.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.send('Emulation.setTouchEmulationEnabled', enabled=phone)

    def shot(self, path: Path, whole: bool = False):
        data = self.send('Page.captureScreenshot', captureBeyondViewport=whole)['data']
        Path(path).write_bytes(base64.b64decode(data))

    def mouse(self, kind: str, x: float, y: float, buttons: int = 1):
        self.send('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', buttons=buttons, clickCount=1)

    def key(self, key: str, **more):
        for kind in ('keyDown', 'keyUp'): self.send('Input.dispatchKeyEvent', type=kind, key=key, **more)

    def complaints(self) -> list[str]:
        "Errors that the page raised or logged."
        found = []
        for event in self.events:
            said = event.get('params', {})
            if event.get('method') == 'Runtime.exceptionThrown': found.append(json.dumps(said['exceptionDetails']))
            entry = said.get('entry', {})
            if entry.get('level') == 'error': found.append(f"{entry['text']} {entry.get('url', '')}")
        return found

    def requests(self) -> list[str]: # addresses
        return [e['params']['request']['url'] for e in self.events if e.get('method') == 'Network.requestWillBeSent']


@contextlib.contextmanager
def browser(): # yields a `Page`
    "A new Chromium, with nothing kept from another one."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen([CHROMIUM, *FLAGS, f'--user-data-dir={folder}', 'about:blank'],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try: yield Page(first_tab(Path(folder), process))
        finally:
            process.terminate()
            process.wait(20)


def first_tab(folder: Path, process: subprocess.Popen, seconds: float = 60) -> str: # its socket
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            port = (folder/'DevToolsActivePort').read_text().split()[0]
            with urllib.request.urlopen(f'http://127.0.0.1:{port}/json/list', timeout=10) as answer:
                tabs = json.load(answer)
            return [tab for tab in tabs if tab['type'] == 'page'][0]['webSocketDebuggerUrl']
        time.sleep(.1)
    raise RuntimeError(f'{CHROMIUM} did not start')
