"""The playground: a page that shows a network at work on a drawing, and trains one live.

    jaxconv playground --workdir=RUN

    server      what all open pages share, and the page's files: page.html, page.css, page.js
    connection  one open page: a WebSocket, and the limits on what it accepts
    guard       which requests are answered; message validates what a page sends
    trainer     a network that learns in a thread and can be started, paused, stepped and rebuilt;
                learner compiles it
    shown       the jitted call from a picture to votes and maps, and the sources of pictures:
                drawings, samples, files; rows chooses the stages whose maps are shown

The page is plain HTML, CSS and JavaScript over one WebSocket, served by Tornado (Apache 2.0;
Jupyter, Bokeh and Streamlit build on it). These were compared late in 2026; the number is that of
the packages that pip would install on Python 3.11:

    tornado 6.6                        1   only HTTP and WebSocket, with limits on sizes and a check
                                       of Origin; no dependencies
    starlette 1.10, uvicorn,           8   the same for the page, from three projects
    websockets
    panel 1.9                         31   Bokeh's models on both sides; a drawing is the points of
                                      a glyph, not pixels under a pen
    streamlit 1.67                    34   reruns the script for every event, so a stroke cannot be
                                      streamed; has no canvas
    nicegui 3.18                      49   FastAPI, socket.io, Vue and Quasar; the canvas would be a
                                      custom JavaScript component
    gradio 6.31                       52   events go through a queue, an answer is an image file;
                                      older versions fetch fonts from elsewhere

The choice follows from what a stroke needs: pointer events as they arrive, and one small binary
answer of about 30 kB, drawn as pixels within a frame or two. With any of these libraries the canvas
and the maps need the same JavaScript. Only the socket is left to the library, and Tornado provides
it without another dependency. The page's Content-Security-Policy forbids requests to any other
machine.
"""
