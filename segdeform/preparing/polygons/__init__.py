"""Shapes that people drew with annotation tools, made index masks by one rule.

    segdeform prepare folder --images photos --masks instances.json --output mine
    segdeform prepare folder --images photos --masks labelme/ --output mine
    segdeform prepare folder --images photos --masks annotations.xml --output mine

The content tells the format; each is shown with an example in its module: coco, labelme, cvat,
label_studio and yolo (python -m pydoc segdeform.preparing.polygons.coco). Which pixels a shape
covers, and what is on top, stands in `drawing`; how pictures are found by name, in `matching`; how
sizes and EXIF turns are told apart, in `sizes`.

Pixels of no shape are background, class 0, into which a label of that name merges; with --partial
they are not scored. Lines are left out; --line-width 3 draws them. Pictures that nobody annotated
are left out; --keep-empty makes them background. Those that a file lists without a shape are
background where that means that somebody looked (COCO, LabelMe, YOLO, submitted tasks of Label
Studio), and count as not annotated where it does not (CVAT).
"""
