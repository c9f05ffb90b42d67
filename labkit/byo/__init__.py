"""Bring your own server: any OpenAI-compatible server, measured from outside, with nothing in it
changed.

    labkit run --command 'transformers serve DIR --port 8000' --url http://127.0.0.1:8000 --weights
        DIR

Lesson: notebooks/09_decide.
"""
