"""DICOM files of nobody, plane by plane, with any attribute set or left out."""

from pathlib import Path

import numpy as np


def dicom_plane(path: Path, stored: np.ndarray, position=(0, 0, 0), *, drop=(), **attributes):
    """Write one file, and return its data set; attributes that are given replace the usual ones.

    Args:
        path: of the file.
        stored: (y, x), or (frame, y, x); its type says the bits and whether they are signed.
        position: mm, of the first pixel's centre.
        drop: attributes to leave out.
        attributes: by keyword; `series` is the last part of the SeriesInstanceUID, `syntax` a
            transfer syntax, `preamble` False for a file without preamble and meta information.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    series, syntax = attributes.pop("series", "1"), attributes.pop("syntax", None)
    preamble = attributes.pop("preamble", True)
    syntax = syntax or pydicom.uid.ExplicitVRLittleEndian
    header = Dataset()
    header.SOPClassUID = attributes.pop("SOPClassUID", pydicom.uid.CTImageStorage)
    header.SOPInstanceUID = attributes.pop("SOPInstanceUID", pydicom.uid.generate_uid())
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.SpecificCharacterSet, header.Modality = "ISO_IR 100", "CT"
    header.StudyInstanceUID, header.SeriesInstanceUID = "2.25.7", f"2.25.8.{series}"
    header.FrameOfReferenceUID = "2.25.9"
    header.PatientName, header.PatientID = "Phantom^Test", "P1"
    header.PatientBirthDate, header.PatientSex = "", "O"
    header.StudyDate, header.StudyTime, header.StudyID = "20240101", "101010", "1"
    header.AccessionNumber, header.ReferringPhysicianName = "", ""
    header.PositionReferenceIndicator, header.SeriesNumber = "", 3
    header.InstanceNumber = 1
    header.ImagePositionPatient = [float(part) for part in position]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing, header.SliceThickness = [0.6, 0.5], 2
    header.Rows, header.Columns = stored.shape[-2:]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * stored.itemsize
    header.BitsAllocated, header.BitsStored, header.HighBit = bits, bits, bits - 1
    header.PixelRepresentation = int(stored.dtype.kind == "i")
    header.RescaleSlope, header.RescaleIntercept = 1, 0
    if stored.ndim == 3:
        header.NumberOfFrames = len(stored)
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    for keyword in drop:
        if keyword in header:
            delattr(header, keyword)
    order = "<" if syntax.is_little_endian else ">"
    header.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    header["PixelData"].VR = "OW" if bits > 8 else "OB"
    if preamble:
        header.save_as(path, enforce_file_format=True)
    else:
        del header.file_meta
        pydicom.dcmwrite(
            path,
            header,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax.is_little_endian,
            enforce_file_format=False,
        )
    return header


def dicom_folder(folder: Path, voxels: np.ndarray, step=2.0, **attributes) -> list[Path]:
    """A series of such planes, `step` mm apart along z; a list gives each plane its own value."""
    folder.mkdir(exist_ok=True)
    files = []
    for number, plane in enumerate(voxels):
        own = {
            keyword: value[number] if isinstance(value, list) else value
            for keyword, value in attributes.items()
        }
        position = own.pop("position", (10, 20, step * number))
        files.append(folder / f"{number:03d}.dcm")
        dicom_plane(files[-1], plane, position, InstanceNumber=number + 1, **own)
    return files


def enhanced(path: Path, voxels: np.ndarray, places, *, slopes=None, **frame_contents):
    """An enhanced multi-frame CT with a plane at each of `places` (mm along z, or x, y, z)."""
    from pydicom.dataset import Dataset

    def item(**values):
        dataset = Dataset()
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        return dataset

    groups = []
    for number, place in enumerate(places):
        where = [-5.0, 7.0, float(place)] if np.ndim(place) == 0 else [float(x) for x in place]
        content = {keyword: value[number] for keyword, value in frame_contents.items()}
        group = item(
            PlanePositionSequence=[item(ImagePositionPatient=where)],
            FrameContentSequence=[item(**content)],
        )
        if slopes is not None:
            group.PixelValueTransformationSequence = [
                item(RescaleSlope=slopes[number], RescaleIntercept=0, RescaleType="US")
            ]
        groups.append(group)
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.6, 0.5], SliceThickness=3)],
    )
    return dicom_plane(
        path,
        voxels,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=groups,
        drop=(
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "SliceThickness",
            "RescaleSlope",
            "RescaleIntercept",
        ),
    )
