"""Shapes that people drew with annotation tools, made index masks by one rule.

    segdeform prepare folder --images photos --masks instances.json --output mine
    segdeform prepare folder --images photos --masks labelme/ --output mine
    segdeform prepare folder --images photos --masks annotations.xml --output mine

The content tells the format; each is shown with an example in its module: coco, labelme, cvat,
label_studio and yolo (python -m pydoc segdeform.preparing.polygons.coco). Which pixels a shape
covers, and what is on top, stands in `drawing`; how pictures are found by name, in `matching`.
"""
