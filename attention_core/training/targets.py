"""What a configuration may name: for each kind of part the classes and functions that may be it.

Everything here only computes, whatever data it is given and whatever else of this list is put into
it. So what evaluates text (`torch_geometric.nn.Sequential`), unpickles or downloads what it is told
to (data sets, `from_pretrained`), opens files of any name (`CSVMetrics`, `SpikeDetection`), reads
checkpoints in a way of its own (`FSDPStrategy` unpickles them) or takes a configuration or a
function of its own (`Lambda`, `DataLoader`, `build_loggers`) is on no list. Before a name is added,
read what it does with its arguments.

Of other people's libraries each name is listed. Of ours, a class of a kind counts by being defined
in our packages; functions, and all that is in `attention_core.training`, count by name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from attention_core.errors import did_you_mean

OURS = ("attention_core", "vision", "graph", "nlp")


def _of(modules: str, names: str) -> frozenset[str]:
    return frozenset(f"{module}.{name}" for module in modules.split() for name in names.split())


@dataclass(frozen=True)
class Kind:
    """One kind of part.

    Args:
        name: with its article, for messages.
        bases: where they are defined; a class of this kind inherits from one of them.
        listed: names of other people's.
        ours: what of ours counts by name alone, by where it is defined.
    """

    name: str
    bases: tuple[str, ...] = ()
    listed: frozenset[str] = frozenset()
    ours: frozenset[str] = frozenset()


TRAINING = "attention_core.training"

KINDS = {
    "data": Kind(
        "a DataModule", (f"{TRAINING}.data.DataModule",), ours=_of(TRAINING, "data.DataModule")
    ),
    "model": Kind(
        "a module",
        ("torch.nn.modules.module.Module",),
        _of(
            "torch.nn",
            "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d "
            "AdaptiveMaxPool2d AdaptiveMaxPool3d AlphaDropout AvgPool1d AvgPool2d AvgPool3d "
            "BatchNorm1d BatchNorm2d BatchNorm3d Bilinear CELU ChannelShuffle Conv1d Conv2d "
            "Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d CosineSimilarity Dropout "
            "Dropout1d Dropout2d Dropout3d ELU Embedding EmbeddingBag FeatureAlphaDropout "
            "Flatten Fold GELU GLU GRU GRUCell GroupNorm Hardshrink Hardsigmoid Hardswish "
            "Hardtanh Identity InstanceNorm1d InstanceNorm2d InstanceNorm3d LPPool1d LPPool2d "
            "LPPool3d LSTM LSTMCell LayerNorm LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d "
            "LazyConv1d LazyConv2d LazyConv3d LazyLinear LeakyReLU Linear LocalResponseNorm "
            "LogSigmoid LogSoftmax MaxPool1d MaxPool2d MaxPool3d Mish ModuleDict ModuleList "
            "MultiheadAttention PReLU PairwiseDistance PixelShuffle PixelUnshuffle RMSNorm RNN "
            "RNNCell RReLU ReLU ReLU6 ReflectionPad1d ReflectionPad2d ReflectionPad3d "
            "ReplicationPad1d ReplicationPad2d ReplicationPad3d SELU Sequential SiLU Sigmoid "
            "Softmax Softmax2d Softmin Softplus Softshrink Softsign SyncBatchNorm Tanh "
            "Tanhshrink Threshold Transformer TransformerDecoder TransformerDecoderLayer "
            "TransformerEncoder TransformerEncoderLayer Unflatten Unfold Upsample ZeroPad1d "
            "ZeroPad2d ZeroPad3d",
        )
        | _of(
            "torchvision.ops",
            "Conv2dNormActivation Conv3dNormActivation DropBlock2d DropBlock3d "
            "FrozenBatchNorm2d MLP Permute SqueezeExcitation StochasticDepth",
        )
        | _of(  # functions; with weights they fetch torchvision's own, by a name and a checksum
            "torchvision.models",
            "convnext_base convnext_large convnext_small convnext_tiny densenet121 "
            "densenet161 densenet169 densenet201 efficientnet_b0 efficientnet_b1 "
            "efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 "
            "efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s maxvit_t "
            "mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf "
            "resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext50_32x4d "
            "shufflenet_v2_x1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s "
            "swin_v2_t vgg11 vgg11_bn vgg13_bn vgg16 vgg16_bn vgg19_bn vit_b_16 vit_b_32 "
            "vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2",
        )
        | _of(
            "torch_geometric.nn",
            "AGNNConv APPNP ARMAConv AntiSymmetricConv AttentionalAggregation AttentiveFP "
            "BatchNorm CGConv ChebConv ClusterGCNConv DNAConv DeepGCNLayer DeepSetsAggregation "
            "DegreeScalerAggregation DenseGATConv DenseGCNConv DenseGINConv DenseGraphConv "
            "DenseSAGEConv DiffGroupNorm DirGNNConv DynamicEdgeConv EGConv EdgeCNN EdgeConv "
            "FAConv FastRGCNConv FeaStConv FiLMConv GAT GATConv GATv2Conv GCN GCN2Conv GCNConv "
            "GENConv GIN GINConv GINEConv GMMConv GPSConv GRUAggregation GatedGraphConv "
            "GeneralConv GraphConv GraphMultisetTransformer GraphNorm GraphSAGE GraphSizeNorm "
            "GraphUNet HeteroBatchNorm HeteroLayerNorm HeteroLinear HypergraphConv InstanceNorm "
            "JumpingKnowledge LEConv LGConv LINKX LSTMAggregation LayerNorm Linear MFConv MLP "
            "MLPAggregation MaxAggregation MeanAggregation MeanSubtractionNorm "
            "MedianAggregation MessageNorm MinAggregation MixHopConv MulAggregation "
            "MultiAggregation NNConv NeuralFingerprint PMLP PNA PNAConv PairNorm PDNConv "
            "PositionalEncoding PowerMeanAggregation QuantileAggregation RGATConv RGCNConv "
            "ResGatedGraphConv SAGEConv SAGPooling SGConv SSGConv Set2Set "
            "SetTransformerAggregation SignedConv SimpleConv SoftmaxAggregation SortAggregation "
            "SplineConv StdAggregation SumAggregation SuperGATConv TAGConv TemporalEncoding "
            "TopKPooling TransformerConv VarAggregation VariancePreservingAggregation",
        ),
        frozenset(
            {
                "attention_core.biases.relative_table.RelativeTable.hops",
                "attention_core.biases.relative_table.RelativeTable.swin",
                "attention_core.biases.relative_table.RelativeTable.t5",
                "attention_core.models.Model.preset",
                "attention_core.pretrained.loading.Pretrained.from_pretrained",
                "vision.swin.SwinTransformer.preset",
            }
        ),
    ),
    "structure": Kind(
        "a mask, a space or a scaling",
        ("attention_core.masks.algebra.Mask", "attention_core.spaces.base.Space"),
        ours=_of("attention_core.rotary_scaling", "LinearScaling Llama3Scaling NTKScaling YaRN"),
    ),
    "transform": Kind(
        "a transform",
        ("torch_geometric.transforms.base_transform.BaseTransform",),
        _of(
            "torchvision.transforms.v2",
            "AugMix AutoAugment CenterCrop ColorJitter Compose ConvertImageDtype "
            "ElasticTransform FiveCrop GaussianBlur GaussianNoise Grayscale Identity JPEG "
            "Normalize PILToTensor Pad RGB RandAugment RandomAdjustSharpness RandomAffine "
            "RandomApply RandomAutocontrast RandomChannelPermutation RandomChoice RandomCrop "
            "RandomEqualize RandomErasing RandomGrayscale RandomHorizontalFlip RandomInvert "
            "RandomOrder RandomPerspective RandomPhotometricDistort RandomPosterize "
            "RandomResize RandomResizedCrop RandomRotation RandomShortestSize RandomSolarize "
            "RandomVerticalFlip RandomZoomOut Resize ScaleJitter ToDtype ToImage ToPureTensor "
            "TrivialAugmentWide",
        )
        | _of(
            "torchvision.transforms",
            "AugMix AutoAugment CenterCrop ColorJitter Compose ConvertImageDtype "
            "ElasticTransform GaussianBlur Grayscale Normalize Pad RandAugment "
            "RandomAdjustSharpness RandomAffine RandomApply RandomAutocontrast RandomChoice "
            "RandomCrop RandomEqualize RandomErasing RandomGrayscale RandomHorizontalFlip "
            "RandomInvert RandomOrder RandomPerspective RandomPosterize RandomResizedCrop "
            "RandomRotation RandomSolarize RandomVerticalFlip Resize TrivialAugmentWide",
        )
        | _of(
            "torch_geometric.transforms",
            "AddLaplacianEigenvectorPE AddRandomWalkPE AddRemainingSelfLoops AddSelfLoops "
            "Cartesian Center Compose Constant Delaunay Distance FaceToEdge FeaturePropagation "
            "FixedPoints GCNNorm GDC HalfHop IndexToMask KNNGraph LaplacianLambdaMax "
            "LargestConnectedComponents LineGraph LocalCartesian LocalDegreeProfile MaskToIndex "
            "NormalizeFeatures NormalizeRotation NormalizeScale OneHotDegree PointPairFeatures "
            "Polar RadiusGraph RandomFlip RandomJitter RandomLinkSplit RandomNodeSplit "
            "RandomRotate RandomScale RandomShear RemoveDuplicatedEdges RemoveIsolatedNodes "
            "RemoveSelfLoops RemoveTrainingClasses SIGN SVDFeatureReduction SamplePoints "
            "Spherical TargetIndegree ToUndirected TwoHop VirtualNode",
        ),
        _of("vision.data.transforms", "ImageTransform"),
    ),
    "samples": Kind(
        "a data set or an objective",
        ("torch.utils.data.dataset.Dataset", "nlp.data.objectives.Objective"),
    ),
    "task": Kind(
        "a Task",
        (f"{TRAINING}.task.Task",),
        ours=_of(
            TRAINING,
            "task.ClassificationTask task.Task regression.RegressionTask "
            "segmentation.SegmentationTask",
        ),
    ),
    "loss": Kind(
        "a loss or a metric",
        ("torch.nn.modules.module.Module",),
        _of(
            "torch.nn",
            "BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss CrossEntropyLoss "
            "GaussianNLLLoss HingeEmbeddingLoss HuberLoss KLDivLoss L1Loss MSELoss "
            "MarginRankingLoss MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss "
            "NLLLoss PoissonNLLLoss SmoothL1Loss SoftMarginLoss TripletMarginLoss",
        )
        | _of(
            "torchmetrics torchmetrics.classification",
            "AUROC Accuracy AveragePrecision CalibrationError CohenKappa ConfusionMatrix "
            "ExactMatch F1Score FBetaScore HammingDistance HingeLoss JaccardIndex "
            "MatthewsCorrCoef Precision Recall ROC Specificity StatScores",
        )
        | _of(
            "torchmetrics.classification",
            "BinaryAUROC BinaryAccuracy BinaryAveragePrecision BinaryCalibrationError "
            "BinaryConfusionMatrix BinaryF1Score BinaryPrecision BinaryRecall BinarySpecificity "
            "MulticlassAUROC MulticlassAccuracy MulticlassAveragePrecision "
            "MulticlassCalibrationError MulticlassCohenKappa MulticlassConfusionMatrix "
            "MulticlassF1Score MulticlassJaccardIndex MulticlassMatthewsCorrCoef "
            "MulticlassPrecision MulticlassRecall MulticlassSpecificity MultilabelAUROC "
            "MultilabelAccuracy MultilabelAveragePrecision MultilabelF1Score "
            "MultilabelHammingDistance MultilabelPrecision MultilabelRankingAveragePrecision "
            "MultilabelRankingLoss MultilabelRecall",
        )
        | _of(
            "torchmetrics torchmetrics.regression",
            "ConcordanceCorrCoef CosineSimilarity ExplainedVariance KendallRankCorrCoef "
            "LogCoshError MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredError "
            "MeanSquaredLogError PearsonCorrCoef R2Score RelativeSquaredError SpearmanCorrCoef "
            "SymmetricMeanAbsolutePercentageError TweedieDevianceScore "
            "WeightedMeanAbsolutePercentageError",
        )
        | _of("torchmetrics", "MaxMetric MeanMetric MinMetric SumMetric MetricCollection"),
    ),
    "optimizer": Kind(
        "an optimizer",
        ("torch.optim.optimizer.Optimizer",),
        _of(
            "torch.optim",
            "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS Muon NAdam RAdam RMSprop "
            "Rprop SGD SparseAdam",
        ),
    ),
    "schedule": Kind(
        "a schedule",
        ("torch.optim.lr_scheduler.LRScheduler",),
        _of(
            "torch.optim.lr_scheduler",
            "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR "
            "LinearLR MultiStepLR OneCycleLR PolynomialLR ReduceLROnPlateau StepLR",
        ),
        _of(TRAINING, "optim.constant optim.inverse_sqrt optim.warmup_cosine find_lr.rising"),
    ),
    "trainer": Kind(
        "a Trainer",
        ("lightning.pytorch.trainer.trainer.Trainer",),
        frozenset({"lightning.Trainer", "lightning.pytorch.Trainer"}),
    ),
    "strategy": Kind(
        "a strategy",
        ("lightning.pytorch.strategies.strategy.Strategy",),
        _of("lightning.pytorch.strategies", "DDPStrategy SingleDeviceStrategy"),
        _of(TRAINING, "parallel.FSDP2"),
    ),
    "profiler": Kind(
        "a profiler",
        ("lightning.pytorch.profilers.profiler.Profiler",),
        _of(
            "lightning.pytorch.profilers",
            "AdvancedProfiler PassThroughProfiler PyTorchProfiler SimpleProfiler",
        ),
    ),
    "callbacks": Kind(
        "a callback",
        ("lightning.pytorch.callbacks.callback.Callback",),
        _of(
            "lightning.pytorch.callbacks",
            "DeviceStatsMonitor EarlyStopping GradientAccumulationScheduler LearningRateMonitor "
            "ModelSummary RichModelSummary RichProgressBar StochasticWeightAveraging "
            "TQDMProgressBar Timer",
        ),
        _of(
            TRAINING,
            "averaging.EMA callbacks.ProgressBar debug.Overfit throughput.Throughput",
        ),
    ),
    "logger": Kind(
        "a logger",
        ("lightning.pytorch.loggers.logger.Logger",),
        _of(
            "lightning.pytorch.loggers",
            "CSVLogger CometLogger MLFlowLogger TensorBoardLogger WandbLogger",
        ),
        _of(TRAINING, "loggers.MLFlow"),
    ),
}

#: The parts of a configuration that are built: what kind each is of, and what may sit inside it.
PARTS: dict[str, tuple[str, ...]] = {
    "data": ("transform", "samples"),
    "model": ("model", "structure"),
    "task": ("model", "loss"),
    "optimizer": (),
    "schedule": (),
    "trainer": ("strategy",),
    "profiler": (),
    "callbacks": (),
    "logger": (),
}

# Why, for those that are known to be asked for
REASONS = {
    "torch_geometric.nn.Sequential": "it evaluates the texts that it is given",
    "torch_geometric.datasets": "it can run what its files hold; graph.data.PyGDataset reads those "
    "data sets that can be read safely",
    "torchvision.datasets": "it takes functions to call; vision.data.TorchvisionImages reads those "
    "data sets that can be read safely",
    "torch.utils.data": "it takes functions to call",
    "torchmetrics.multimodal": "it downloads models with their code",
    "torchmetrics.text": "it downloads models",
    "attention_core.training": "it reads and runs whole configurations, or opens files",
}


def is_within(name: str, parents: Iterable[str]) -> bool:
    """Return whether a dotted name is one of `parents`, or lies below one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def reason(target: str, kinds: tuple[str, ...]) -> str:
    """Say why `target` is refused where one of `kinds` can be, and the nearest name that is not."""
    known = {name for kind in kinds for name in KINDS[kind].listed}
    near = did_you_mean(target, known)
    for prefix, why in REASONS.items():
        if is_within(target, [prefix]):
            return f"{why}.{near}"
    wanted = " or ".join(KINDS[kind].name for kind in kinds) or "nothing"
    module = target.rpartition(".")[0]
    there = sorted(name.removeprefix(f"{module}.") for name in known if name.startswith(module))
    if len(there) > 12:
        there = [*there[:12], "..."]
    which = f" Of {module} there can be {', '.join(there)}." if there else ""
    return f"it is no listed {wanted.removeprefix('a ').removeprefix('an ')}.{near}{which}"


def is_of(found: Any, kinds: tuple[str, ...]) -> bool:
    """Return whether what our packages define is of one of `kinds`."""
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    owner = getattr(found, "__self__", None)  # of a class method
    # Whatever they import can be reached through our modules, too
    ours = home.partition(".")[0] in OURS and not home.startswith(f"{TRAINING}.")
    for kind in (KINDS[name] for name in kinds):
        if home in kind.ours:
            return owner is None or derives(owner, kind)
        if isinstance(found, type) and ours and derives(found, kind):
            return True
    return False


def derives(found: Any, kind: Kind) -> bool:
    """Return whether `found` is a class with a base of `kind`; nothing is imported."""
    lineage = {f"{base.__module__}.{base.__qualname__}" for base in getattr(found, "__mro__", ())}
    return not lineage.isdisjoint(kind.bases)
