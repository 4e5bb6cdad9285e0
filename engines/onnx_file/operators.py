"""The operators that graphs of diffusion models consist of, in one table.

They are what our exporter writes for every family, precision and opset, what Optimum's exports
hold, and what ONNX Runtime's optimisations make of both. None of them loops, reads a file, or runs
code of somebody else. Operators outside of the table are not known to do harm; they are unknown.
"""

from __future__ import annotations

from collections.abc import Mapping

from sdexport.engines.onnx_file.graph_survey import GraphSurvey

_ONNX = """
    Abs Add And ArgMax Attention AveragePool Cast CastLike Ceil Clip Concat Constant
    ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div
    DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool Greater GreaterOrEqual GroupNormalization HardSigmoid
    HardSwish Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax MatMul MatMulInteger Max MaxPool Min Mod Mul Neg Not OneHot Or
    PRelu Pad Pow QuantizeLinear RMSNormalization Range Reciprocal ReduceL2 ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum Relu Reshape Resize RotaryEmbedding Round ScatterElements
    ScatterND Shape Sigmoid Sign Sin Size Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze
    Sub Sum Swish Tan Tanh Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
_MICROSOFT = """
    Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu DynamicQuantizeMatMul FastGelu
    FusedConv FusedGemm FusedMatMul Gelu GroupNorm GroupQueryAttention MatMulIntegerToFloat
    MatMulNBits MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool PackedMultiHeadAttention
    QAttention QGemm QLinearAdd QLinearConcat QLinearMul QLinearSigmoid QLinearSoftmax QuickGelu
    RemovePadding RestorePadding RotaryEmbedding SimplifiedLayerNormalization SkipGroupNorm
    SkipLayerNormalization SkipSimplifiedLayerNormalization Trilu UnfoldTensor
"""
_NCHWC = (
    "AveragePool Conv GlobalAveragePool GlobalMaxPool MaxPool ReorderInput ReorderOutput Upsample"
)

DECLARED: Mapping[str, frozenset[str]] = {
    "": frozenset(_ONNX.split()),
    "com.microsoft": frozenset(_MICROSOFT.split()),
    "com.microsoft.nchwc": frozenset(_NCHWC.split()),
}
"""Domain -> operators; "" is the domain of ONNX."""


def unknown_parts(found: GraphSurvey) -> list[str]:
    """What a graph holds that the table does not, such as "Loop" or "com.example.Decode"."""
    parts = [
        f"{domain}.{operator}" if domain else operator
        for domain, operator in sorted(found.operators)
        if operator not in DECLARED.get(domain, ())
    ]
    if found.functions:
        parts.append(f"{found.functions} functions of its own")
    if found.depth:
        parts.append("graphs inside of operators")
    return parts
