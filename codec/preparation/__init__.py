"""Corpora made ready: fetched, unpacked, measured, thinned and listed in manifests. Knows nothing of models.

`folder.py` prepares any folder of sound files, `libritts.py` LibriTTS and LibriTTS-R, which it brings with the help of
`archives.py`. In both `survey.py` measures each file once, `selection.py` decides which are kept, and `outcome.py`
writes the lists and tells what happened.
"""
