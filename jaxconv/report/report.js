"use strict"
// Colours, charts and their zoom. Nothing is loaded: the numbers are in the page.
{
  // State that survives a reload, if the browser lets a local file store it.
  const memory = (store, key) => ({
    get() { try { return JSON.parse(window[store].getItem(key)) } catch { return null } },
    set(value) { try { window[store].setItem(key, JSON.stringify(value)) } catch { /* the page works without it */ } },
  })
  const theme = memory("localStorage", "jaxconv-theme")
  const place = memory("sessionStorage", "jaxconv-place " + location.pathname)
  const all = selector => [...document.querySelectorAll(selector)]
  const charts = []
  let shown = null // the x range zoomed to, or null for all
  let timed = false // whether x is the time instead of the step
  let smoothing = 0 // the weight of the past in a moving average, from 0 to below 1
  const MANY = 8 // above this many lines, the one near the mouse stands out
  const SMOOTHED = 30 // a line of fewer points is not smoothed

  function colour(name) {
    const probe = document.body.appendChild(document.createElement("span"))
    probe.style.color = `var(--${name})`
    const found = getComputedStyle(probe).color
    probe.remove()
    return found
  }

  // The exponential moving average, divided by the weights so far: it does not start at zero.
  function smoothed(values) {
    let sum = 0, weights = 0
    return values.map(value => {
      sum = smoothing * sum + (1 - smoothing) * value
      weights = smoothing * weights + 1 - smoothing
      return sum / weights
    })
  }

  // The series as they are to be drawn: against step or time, and smoothed. Behind a few smoothed
  // lines stay the measured ones, pale.
  function chosen(source) {
    const lines = source.series.map(one => ({ ...one, x: timed ? one.seconds.map(s => s / unit.seconds) : one.x }))
    const smooths = one => smoothing && one.look != "edge" && one.y.length > SMOOTHED
    const pale = lines.length > MANY ? [] : lines.filter(smooths).map(one => ({ ...one, look: "pale" }))
    return { ...source, xLabel: timed ? unit.name : source.xLabel, series: [...pale, ...lines.map(one => smooths(one) ? { ...one, y: smoothed(one.y) } : one)] }
  }

  // All series on one common x axis, as uPlot needs them; undefined where a series has no value.
  function together(data) {
    const x = [...new Set(data.series.flatMap(one => one.x))].sort((a, b) => a - b)
    const series = data.series.map(one => {
      const at = new Map(one.x.map((x, n) => [x, one.y[n]]))
      return { ...one, y: x.map(x => at.get(x)) }
    })
    return { ...data, series, x }
  }

  function options(data, box, logarithmic) {
    const inks = {}
    const ink = name => inks[name] ??= colour(name)
    const axis = more => ({ stroke: () => ink("quiet"), grid: { stroke: () => ink("line"), width: 1 }, ticks: { stroke: () => ink("line"), width: 1 }, ...more })
    const many = data.series.length > MANY && !data.series.some(one => one.look == "pale")
    const translucent = (ink, alpha) => ink.replace("rgb(", "rgba(").replace(")", `, ${alpha})`)
    const bands = []
    const series = data.series.map((one, number) => {
      const stroke = () => ink(`series-${one.number % 6}`)
      if (one.look == "pale")
        return { stroke: () => translucent(stroke(), 0.3), width: 1, spanGaps: true, points: { show: false }, quiet: true }
      if (one.look != "edge")
        return {
          label: one.label, stroke, spanGaps: true, value: (u, value) => value == null ? "–" : short(value),
          width: one.look == "thin" ? 1.25 : 2.5, dash: one.look == "dashed" ? [6, 4] : undefined,
          points: { show: one.y.filter(y => y != null).length <= (many || one.look == "thin" ? 3 : 60), size: 6 },
        }
      if (data.series[number + 1]?.look == "edge" && data.series[number - 1]?.look != "edge")
        bands.push({ series: [number + 1, number + 2], fill: () => translucent(stroke(), 0.18) })
      return { stroke, width: 0, spanGaps: true, points: { show: false }, quiet: true }
    })
    const positive = data.series.flatMap(one => one.y).some(y => y > 0)
    return {
      width: box.clientWidth, height: 260, bands,
      scales: { x: { time: false }, y: logarithmic && positive ? { distr: 3, clip: 1e-9 } : {} },
      series: [{ label: data.xLabel, value: (u, value) => value == null ? "–" : timed ? short(value) : value.toLocaleString("en") }, ...series],
      axes: [axis({ values: (u, ticks) => ticks.map(tick => timed ? short(tick) : Number.isInteger(tick) ? tick.toLocaleString("en") : "") }),
        axis({ size: 60, values: (u, ticks) => ticks.map(tick => tick == null ? "" : short(tick)) })],
      focus: { alpha: 0.2 },
      cursor: {
        focus: { prox: many ? 16 : -1 },
        drag: { x: true, y: false, setScale: false },
        sync: { key: "steps", filters: { pub: kind => kind == "mousemove" || kind == "mouseleave" } },
        points: { size: 7 },
        bind: { dblclick: () => null },
      },
      hooks: {
        setSeries: [(u, number) => {
          const legend = u.root.querySelector(".u-legend")
          if (many && number) legend.scrollTop = legend.querySelectorAll(".u-series")[number].offsetTop
        }],
        setSelect: [u => {
          if (u.select.width < 2) return
          show([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")])
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false)
        }],
      },
    }
  }

  function short(value) {
    const size = Math.abs(value)
    return size && (size < 0.001 || size >= 1e6) ? value.toExponential(2).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(4)))
  }

  function draw(chart) {
    chart.plot?.destroy()
    const { box } = chart
    const data = chart.data = together(chosen(chart.source))
    chart.plot = new uPlot(options(data, box, chart.log.checked), [data.x, ...data.series.map(one => one.y)], box)
    chart.plot.ctx.canvas.setAttribute("aria-hidden", "true") // the label of its group describes it
    box.querySelectorAll(".u-legend .u-series").forEach((row, number) => {
      if (!number) return
      row.hidden = Boolean(chart.plot.series[number].quiet)
      const head = row.querySelector("th")
      head.tabIndex = 0
      head.setAttribute("role", "button")
      head.setAttribute("aria-label", `${chart.plot.series[number].label}: show or hide`)
      head.addEventListener("keydown", event => {
        if (event.key == "Enter" || event.key == " ") { event.preventDefault(); head.click() }
      })
    })
    if (shown) tell(chart.plot, shown)
  }

  const tell = (plot, [min, max]) => { if (max > min) plot.setScale("x", { min, max }) }

  function whole() {
    const ends = charts.filter(chart => chart.data.x.length).map(chart => [chart.data.x[0], chart.data.x.at(-1)])
    return [Math.min(...ends.map(end => end[0])), Math.max(...ends.map(end => end[1]))]
  }

  // Show a range of x in all charts; null, or a range that covers the data, shows everything.
  function show(range) {
    const [least, most] = whole()
    if (range) range = [Math.max(least, range[0]), Math.min(most, range[1])]
    if (range && (range[1] <= range[0] || range[0] == least && range[1] == most)) range = null
    shown = range
    const [min, max] = range ?? [least, most]
    for (const { plot } of charts) tell(plot, [min, max])
    const say = x => timed ? String(Number(x.toPrecision(3))) : Math.round(x).toLocaleString("en")
    const said = `${charts[0].data.xLabel}${timed ? "" : "s"} ${say(min)} to ${say(max)}` + (range ? ` of ${say(least)} to ${say(most)}` : ", all")
    for (const output of all(".zoom output")) output.textContent = said
  }

  function move(how) {
    const [least, most] = whole()
    let [min, max] = shown ?? [least, most]
    const width = max - min
    if (how == "all") return show(null)
    if (how == "in") [min, max] = width > (timed ? most / 1e4 : 2) ? [min + width / 4, max - width / 4] : [min, max]
    if (how == "out") [min, max] = [min - width / 2, max + width / 2]
    const shift = how == "left" ? Math.max(least - min, -width / 2) : how == "right" ? Math.min(most - max, width / 2) : 0
    show([min + shift, max + shift])
  }

  const choice = document.querySelector("#theme")
  const system = matchMedia("(prefers-color-scheme: dark)")
  const paint = () => {
    const root = document.documentElement
    root.style.colorScheme = choice.value
    root.classList.toggle("dark", choice.value == "dark" || choice.value != "light" && system.matches)
    charts.forEach(draw)
  }
  choice.value = theme.get() ?? "light dark"
  if (!choice.value) choice.value = "light dark"
  paint()
  choice.addEventListener("change", () => { theme.set(choice.value); paint() })
  system.addEventListener("change", paint)

  const keys = { "+": "in", "=": "in", "-": "out", "0": "all", Escape: "all", ArrowLeft: "left", ArrowRight: "right" }
  for (const box of all(".plot")) {
    const figure = box.closest("figure")
    const chart = { box, source: JSON.parse(figure.querySelector("script").textContent), log: figure.querySelector(".log") }
    charts.push(chart)
  }
  // The time can be shown if every line has it, in a unit that gives numbers of a few digits.
  const lines = charts.flatMap(chart => chart.source.series)
  const known = lines.every(one => one.seconds.length == one.x.length)
  const longest = known ? lines.reduce((most, one) => Math.max(most, one.seconds.at(-1) ?? 0), 0) : 0
  const unit = longest > 7200 ? { name: "hours", seconds: 3600 } : longest > 120 ? { name: "minutes", seconds: 60 } : { name: "seconds", seconds: 1 }
  timed = longest > 0 && Boolean(place.get()?.timed)
  smoothing = place.get()?.smoothing ?? 0
  for (const chart of charts) {
    const { box } = chart
    chart.log.parentElement.hidden = false
    chart.log.addEventListener("change", () => draw(chart))
    box.addEventListener("keydown", event => {
      if (event.ctrlKey || event.altKey || event.metaKey || !keys[event.key]) return
      event.preventDefault()
      move(keys[event.key])
    })
    box.addEventListener("dblclick", () => show(null))
    draw(chart)
    new ResizeObserver(() => {
      if (Math.abs(chart.plot.width - box.clientWidth) > 1) chart.plot.setSize({ width: box.clientWidth, height: 260 })
    }).observe(box)
  }
  for (const group of all(".zoom")) {
    group.hidden = false
    const [against, slider] = [group.querySelector(".against"), group.querySelector(".smoothing")]
    against.parentElement.hidden = !longest
    against.value = timed ? "time" : "step"
    slider.value = smoothing
    slider.parentElement.hidden = !lines.some(one => one.look != "edge" && one.y.length > SMOOTHED)
    const told = () => slider.setAttribute("aria-valuetext", smoothing ? `${smoothing}` : "none")
    told()
    against.addEventListener("change", () => {
      timed = against.value == "time"
      for (const other of all(".against")) other.value = against.value
      charts.forEach(draw)
      show(null) // the range was of the other axis
    })
    slider.addEventListener("input", () => {
      smoothing = Number(slider.value)
      for (const other of all(".smoothing")) other.value = slider.value
      told()
      charts.forEach(draw)
    })
  }
  for (const button of all("[data-zoom]")) button.addEventListener("click", () => move(button.dataset.zoom))
  if (charts.length) show(place.get()?.range ?? null)

  // Clicking a header cell sorts by its column, and clicking again reverses the order; non-numbers such as "-" come last.
  for (const table of all(".sortable")) {
    const heads = [...table.tHead.rows[0].cells]
    heads.forEach((head, column) => {
      const button = document.createElement("button")
      button.append(...head.childNodes)
      head.append(button)
      button.addEventListener("click", () => {
        const sign = head.ariaSort == "ascending" ? -1 : 1
        for (const other of heads) other.ariaSort = null
        head.ariaSort = sign > 0 ? "ascending" : "descending"
        const text = row => row.cells[column].textContent
        const numbers = new Map([...table.tBodies[0].rows].map(row => [row, parseFloat(text(row).replaceAll(",", ""))]))
        const compare = (a, b) => {
          const [x, y] = [numbers.get(a), numbers.get(b)]
          return isNaN(x) - isNaN(y) || sign * (isNaN(x) ? text(a).localeCompare(text(b)) : x - y)
        }
        table.tBodies[0].append(...[...numbers.keys()].sort(compare))
      })
    })
  }

  // The page of a running training reloads only on request, and keeps its zoom and scroll position:
  // a page that changes by itself disturbs readers and screen readers.
  const follow = document.querySelector("#follow")
  if (follow) {
    let timer
    const wait = () => {
      clearTimeout(timer)
      if (follow.checked) timer = setTimeout(() => { remember(); location.reload() }, 5000)
    }
    const remember = () => place.set({ range: shown, y: scrollY, follow: follow.checked, timed, smoothing })
    const before = place.get()
    follow.checked = Boolean(before?.follow)
    if (before?.follow) requestAnimationFrame(() => scrollTo({ top: before.y, behavior: "instant" }))
    follow.addEventListener("change", () => { remember(); wait() })
    wait()
  }
}
