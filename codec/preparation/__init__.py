"""Corpora made ready: fetched, unpacked, measured, thinned and listed in manifests. Knows nothing of models.

`folder.py` prepares any folder of sound files, `libritts.py` LibriTTS and LibriTTS-R; both put the same four steps
together: `download.py` and `archives.py` bring the files, `survey.py` measures each once, `selection.py` decides which
are kept, `outcome.py` writes the lists and tells what happened.
"""
