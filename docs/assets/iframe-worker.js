// A browser starts no worker for a page that was opened as a file: search then runs in a hidden frame.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement('iframe')
      frame.hidden = true
      this.inside = new Promise(done => {
        frame.onload = () => {
          const inside = frame.contentWindow, script = inside.document.createElement('script')
          inside.postMessage = data => this.dispatchEvent(new MessageEvent('message', { data }))
          script.onload = () => done(inside)
          script.src = address
          inside.document.body.append(script)
        }
      })
      document.body.append(frame)
    }
    async postMessage(data) { (await this.inside).dispatchEvent(new MessageEvent('message', { data })) }
    terminate() {}
  }
}
