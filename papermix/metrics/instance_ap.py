"""Average precision of instance masks as COCO defines it (Lin et al., "Microsoft COCO", 2014), computed by faster-coco-eval."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from faster_coco_eval.core import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle
from torch import Tensor, nn
from torchmetrics import Metric

from papermix.errors import UserError
from papermix.segmentation.segments import Segments

_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
_Instance = tuple[int, float, bytes]  # class, crowd (truth) or score (prediction), run lengths of the mask
_Image = tuple[int, int, list[_Instance], list[_Instance]]  # height, width, truth, prediction


class InstanceAP(Metric):
    """AP and AR of instances: ten IoU thresholds 0.50 to 0.95, 101 points of recall, at most 100 detections per image and class.

    Equal to pycocotools. The library is called directly because torchmetrics' MeanAveragePrecision forgets the false positives of
    images without truth, rounds its thresholds to float32, and waits for ever when processes have unequal numbers of images.
    Classes without any truth are left out of all means, and so are harmless among predictions. Small, medium and large are
    judged by the area of the mask in pixels (COCO's files give that of their polygons, a little different).

    Masks are kept as run lengths in main memory; all processes gather those of all.

    Args:
        boxes: judge the boxes around the masks as well; their numbers have ``box_`` before their names.
    """

    full_state_update = False
    images: list[_Image]

    def __init__(self, boxes: bool = False) -> None:
        super().__init__()
        self.boxes = boxes
        self.add_state("images", [], dist_reduce_fx=None)

    def update(self, prediction: Segments | tuple[Tensor, Tensor, Tensor], masks: Tensor, labels: Tensor, crowd: Tensor) -> None:
        """Add one image.

        Args:
            prediction: segments of size [H, W], or masks bool [P, H, W] that may overlap, classes int [P], scores float [P].
            masks: of the true instances, bool [S, H, W].
            labels: their classes, int [S].
            crowd: whether they are groups of objects, bool [S].

        Raises:
            UserError: the masks differ in size.
        """
        if isinstance(prediction, Segments):
            prediction = prediction.masks(), prediction.category, prediction.score
        found, classes, scores = prediction
        if found.shape[1:] != masks.shape[1:]:
            ours, theirs = tuple(found.shape[1:]), tuple(masks.shape[1:])
            raise UserError(f"predicted masks of size {ours} do not fit the truth's {theirs}: bring them to the truth's size.")
        height, width = masks.shape[1:]
        truths = zip(labels.tolist(), crowd.int().tolist(), _encode(masks))
        predictions = zip(classes.tolist(), scores.double().tolist(), _encode(found))
        self.images.append((height, width, list(truths), list(predictions)))

    def compute(self) -> dict[str, Tensor]:
        """``ap``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``, ``ar1``, ``ar10``, ``ar100``, float64.

        As in COCO's evaluation, a mean over nothing is -1.
        """
        kinds = {"segm": "", "bbox": "box_"} if self.boxes else {"segm": ""}
        values: dict[str, Tensor] = {}
        for kind, start in kinds.items():
            for name, value in zip(_NAMES, self._stats(kind)):
                values[start + name] = torch.tensor(value, dtype=torch.float64, device=self.device)
        return values

    def _stats(self, kind: str) -> Sequence[float]:
        # among equal scores the order of the images decides: it must not depend on how processes shared them
        images = sorted(self.images)
        categories = sorted({label for image in images for label, _, _ in image[2]})
        if not categories:
            return [-1.0] * len(_NAMES)
        truth, prediction = (_coco(images, categories, predicted, kind) for predicted in (False, True))
        evaluation = COCOeval_faster(truth, prediction, kind, print_function=lambda *_: None)
        evaluation.run()
        return evaluation.stats[: len(_NAMES)]

    def __hash__(self) -> int:
        return hash(id(self))  # torchmetrics would hash the images, which hold lists

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = ()) -> nn.Module:
        return super()._apply(fn, exclude_state=(*exclude_state, "images"))  # no tensors

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any = None) -> None:
        gathered: list[Any] = [None] * dist.get_world_size(process_group)
        dist.all_gather_object(gathered, self.images, group=process_group)
        self.images = [image for part in gathered for image in part]


def _encode(masks: Tensor) -> Iterator[bytes]:
    """Compressed run lengths of masks bool [S, H, W], column by column."""
    columns = masks.transpose(1, 2).contiguous().byte().cpu().numpy()
    return (one["counts"] for one in rle.encode(columns.transpose(2, 1, 0)))


def _coco(images: Sequence[_Image], categories: Sequence[int], predicted: bool, kind: str) -> COCO:
    """The truth or the predictions of all images as the library reads them."""
    annotations: list[dict[str, Any]] = []
    for number, (height, width, *both) in enumerate(images):
        for label, value, counts in both[predicted]:
            mask = {"size": [height, width], "counts": counts}
            box = rle.toBbox(mask).tolist()
            annotation = {
                "id": len(annotations) + 1,  # 0 would mean: no match
                "image_id": number,
                "category_id": label,
                "segmentation": mask,
                "bbox": box,
                # a predicted box has its own area, a true one that of its mask
                "area": box[2] * box[3] if kind == "bbox" and predicted else float(rle.area(mask)),
                "score" if predicted else "iscrowd": value,
            }
            annotations.append(annotation)
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "height": image[0], "width": image[1]} for number, image in enumerate(images)],
        "categories": [{"id": category, "name": str(category)} for category in categories],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
