// Browsers start no Worker for a page that was opened from a file. The search of this site is written as one: here a
// hidden frame takes its place. The page and the frame see each other's messages in a later task, as with a Worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.srcdoc = "<!doctype html><title>search</title>"
      this.frame.onload = () => {
        const inside = this.frame.contentWindow
        inside.postMessage = (data) => this.tell(this, data)
        const script = inside.document.createElement("script")
        script.src = new URL(url, document.baseURI)
        script.onload = () => {
          this.waiting.splice(0).forEach((data) => this.tell(inside, data))
          this.waiting = null
        }
        script.onerror = () => this.dispatchEvent(new Event("error"))
        inside.document.head.append(script)
      }
      document.documentElement.append(this.frame)
    }

    set onmessage(listener) { this.listen("message", listener) }
    set onmessageerror(listener) { this.listen("messageerror", listener) }
    set onerror(listener) { this.listen("error", listener) }

    listen(type, listener) {
      const key = "on:" + type
      if (this[key]) this.removeEventListener(type, this[key])
      if (listener) this.addEventListener(type, listener)
      this[key] = listener
    }

    tell(target, data) {
      setTimeout(() => target?.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) })))
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.tell(this.frame.contentWindow, data)
    }

    terminate() { this.frame.remove() }
  }
}
