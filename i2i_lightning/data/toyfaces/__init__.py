"""ToyFaces: the embedded data set, drawn on the fly from numbers, with its whole truth.

A face is about sixty named numbers (:mod:`.parameters`), drawn from a fixed, versioned distribution: face
``i`` of a split is the same face on every machine and in every release. Its outlines are signed distance
fields (:mod:`.geometry`), and everything drawn (:mod:`.render`) comes from those fields, so that all of it
agrees to the pixel at any size from 32 to 512 px:

* ``photo``: shaded under one key light, with gloss, shadow, strands, backdrop and a trace of grain;
* ``cartoon``: flat colours with dark outlines, of the same face;
* ``parsing``, ``palette``: 11 classes as index and in fixed colours; ``instances``: left and right told
  apart;
* ``regions``: each part in its one colour, hard edges; ``edges``: the pen lines of the cartoon;
* 33 named landmarks, 26 continuous parameters, 18 named yes-or-no attributes.

The photo is not determined by the parsing: light, skin, hair, cloth and backdrop vary behind it.

* ``dataset.ToyFaces(split, size_px)[i]`` draws one face with all its truth.
* ``module.ToyFacesDataModule(task)`` is one paired task of :mod:`.tasks` for training.
* ``parameters.replace(face, smile=1.0)`` and ``render.render(face, 128)`` draw the truth of an edit.
* ``python -m i2i_lightning.data.toyfaces sheet.png`` writes a contact sheet.

Left and right are the viewer's. Splits: 4000 train, 200 val and 200 test faces by default; each can be
extended without changing the faces it has. Nothing is imported here, so that :mod:`.tasks` stays light.
"""
