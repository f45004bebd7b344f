"""The playground: a page that shows a network at work on what is drawn, and trains one live.

    jaxconv playground --workdir=RUN

    server    what all open pages share, and the files of the page: page.html, page.css, page.js
    page      one open page: a WebSocket, and what it takes
    guard     who is answered; message looks at what a page sends
    trainer   a network that learns in a thread, to be started, paused, stepped and rebuilt; network
              compiles it
    shown     the jitted call from a picture to votes and maps, and what makes pictures: drawings,
              samples, files; rows says which stages of a network have maps there

The page is plain HTML, CSS and JavaScript over one WebSocket, and Tornado serves it (Apache 2.0;
Jupyter, Bokeh and Streamlit stand on it). What else was looked at, late in 2026, with the packages
that pip would install for each on Python 3.11:

    tornado 6.6                        1   HTTP and WebSocket alone, with limits on sizes and the
                                       check of Origin; nothing that it needs
    starlette 1.10, uvicorn,           8   the same for the page, from three projects
    websockets
    panel 1.9                         31   Bokeh's models on both sides; a drawing is points of a
                                      glyph, not pixels under a pen
    streamlit 1.67                    34   runs the script anew for every event, so that a stroke is
                                      no stream; has no canvas of its own
    nicegui 3.18                      49   FastAPI, socket.io, Vue and Quasar; the canvas would be a
                                      component of one's own in JavaScript
    gradio 6.31                       52   events go through a queue, an answer is an image file;
                                      older ones fetch fonts from elsewhere

What decides is what a stroke needs: pointer events as they come, and one small binary answer of
some 30 kB, drawn as pixels within a frame or two. All of these would want the same JavaScript for
the canvas and the maps; what is left for the library is the socket, and that Tornado has without
another dependency. The page asks nothing of any other machine, by its own Content-Security-Policy.
"""
